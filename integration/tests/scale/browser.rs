//! A page in a real browser, without a window: does it complain, does it ask for anything, does everything fit?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder;

/// Measures the page from inside and leaves what it found in the document. The page itself has no scripts.
const RULER: &str = r"<script>
addEventListener('load', () => {
  const wrong = [];
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('the page is wider than the window');
  for (const chart of document.querySelectorAll('svg')) {
    const frame = chart.getBoundingClientRect();
    const name = chart.querySelector('title').textContent;
    if (frame.width < 300 || frame.height < 40) wrong.push(name + ': too small');
    for (const text of chart.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        wrong.push(name + ': cut off: ' + text.textContent);
    }
  }
  const result = document.createElement('output');
  result.id = 'ruler';
  result.textContent = JSON.stringify({
    wrong,
    charts: document.querySelectorAll('section.question svg').length,
    questions: document.querySelectorAll('section.question').length,
    links: [...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.getAttribute('href'))).length,
  });
  document.body.append(result);
});
</script>";

/// `SWITCHYARD_BROWSER`, or Debian's.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("SWITCHYARD_BROWSER") {
        return path.into();
    }
    let known = ["/usr/bin/chromium", "/usr/bin/google-chrome"].map(PathBuf::from);
    known
        .into_iter()
        .find(|path| path.exists())
        .expect("no browser: install Debian's package chromium, or name one in SWITCHYARD_BROWSER")
}

/// What the browser makes of a page: its document, and what it wrote to its console.
fn open(page: &Path, extra: &[&str]) -> (String, Vec<String>) {
    let profile = folder("browser");
    let output = Command::new(program())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--window-size=1280,800", "--enable-logging=stderr", "--virtual-time-budget=2000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(extra)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    drop(fs::remove_dir_all(profile));
    let complaints = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), complaints)
}

/// Panics with what is wrong about the page.
pub(crate) fn check(page: &Path) {
    let (document, complaints) = open(page, &["--dump-dom"]);
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(document.contains("<svg"), "there is no chart");

    // Everything but the policy that forbids scripts is as in the page.
    let text = fs::read_to_string(page).expect("the page exists");
    for outside in ["http://", "https://", "//cdn", "@import", "<script", "<link rel=\"stylesheet"] {
        let allowed = text.matches("http://www.w3.org/2000/svg").count();
        let found = text.matches(outside).count() - if outside == "http://" { allowed } else { 0 };
        assert_eq!(found, 0, "the page mentions {outside}");
    }
    let policy = text.lines().find(|line| line.contains("Content-Security-Policy")).expect("it has a policy");
    let measured = page.with_file_name("measured.html");
    fs::write(&measured, text.replace(policy, RULER)).expect("the folder is writable");
    let (document, complaints) = open(&measured, &["--dump-dom"]);
    assert!(complaints.is_empty(), "{complaints:#?}");
    let found =
        document.split("<output id=\"ruler\">").nth(1).and_then(|rest| rest.split("</output>").next());
    let found: serde_json::Value =
        serde_json::from_str(&found.expect("the page was measured").replace("&quot;", "\""))
            .expect("it is JSON");
    assert_eq!(found["wrong"], serde_json::json!([]), "{found:#}");
    assert!(found["questions"].as_u64().is_some_and(|count| count > 20), "{found:#}");
    assert_eq!(found["charts"], found["questions"]);
    assert_eq!(found["links"], 0, "links that lead nowhere");

    let print = page.with_extension("pdf");
    open(page, &["--no-pdf-header-footer", &format!("--print-to-pdf={}", print.display())]);
    assert!(fs::read(&print).expect("it was printed").starts_with(b"%PDF"));
}

#[test]
fn a_page_that_asks_for_something_outside_or_fails_is_noticed() {
    let folder = folder("bad-page");
    let page = folder.join("bad.html");
    let bad = [
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'\"><img src=\"https://example.invalid/a.png\">",
        "<script>undefined_function()</script>",
    ];
    for text in bad {
        fs::write(&page, format!("<!doctype html><title>bad</title>{text}")).expect("the folder is writable");
        let (_, complaints) = open(&page, &["--dump-dom"]);
        assert!(!complaints.is_empty(), "no complaint about {text}");
    }
    fs::remove_dir_all(folder).expect("the folder is ours");
}
