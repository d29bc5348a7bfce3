//! A bearer token that lives in a file, which somebody replaces now and then: the kubelet does, long before it expires.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::HeaderValue;

use super::secret::bearer;

/// After this time the file is read again.
const LIFETIME: Duration = Duration::from_secs(50);

/// Puts the file's token on every request.
#[derive(Clone)]
pub(super) struct TokenFile {
    path: PathBuf,
    current: Arc<Mutex<Token>>,
}

struct Token {
    header: HeaderValue,
    /// `None`: it was refused.
    read: Option<Instant>,
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn read(path: &PathBuf) -> anyhow::Result<HeaderValue> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the token {}", path.display()))?;
    let token = text.trim();
    anyhow::ensure!(!token.is_empty(), "the token file {} is empty", path.display());
    bearer(token).with_context(|| format!("the token file {}", path.display()))
}

impl TokenFile {
    #[expect(clippy::disallowed_methods, reason = "tokens age with the clock")]
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let token = Token { header: read(&path)?, read: Some(Instant::now()) };
        Ok(Self { path, current: Arc::new(Mutex::new(token)) })
    }

    #[expect(clippy::disallowed_methods, reason = "tokens age with the clock")]
    pub(super) fn header(&self) -> HeaderValue {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.read.is_none_or(|at| at.elapsed() >= LIFETIME) {
            // A file that is gone leaves the last token in use.
            match read(&self.path) {
                Ok(header) => current.header = header,
                Err(error) => tracing::error!(error = %format!("{error:#}"), "The last token stays in use"),
            }
            current.read = Some(Instant::now());
        }
        current.header.clone()
    }

    /// The server does not take the token: the next request reads the file.
    pub(super) fn refused(&self) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).read = None;
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use http::{Request, Response, StatusCode, header::AUTHORIZATION};
    use tower_layer::Layer as _;
    use tower_service::Service;

    use super::*;
    use crate::api::client::credentials::Credentials;

    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("switchyard-token-{name}-{}", std::process::id()));
            fs::write(&path, text).expect("a file");
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Takes one token only.
    #[derive(Clone)]
    struct Server(&'static str);

    impl Service<Request<()>> for Server {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<Result<Response<()>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let mut answer = Response::new(());
            if request.headers().get(AUTHORIZATION).is_none_or(|header| header != self.0) {
                *answer.status_mut() = StatusCode::UNAUTHORIZED;
            }
            std::future::ready(Ok(answer))
        }
    }

    #[tokio::test]
    async fn a_token_that_is_refused_is_read_again_and_white_space_does_not_count() {
        let file = File::new("rotated", "old\n");
        let token = Credentials::File(TokenFile::open(file.0.clone()).expect("a token"));
        let ask = async |server: &'static str| {
            token.layer(Server(server)).call(Request::new(())).await.expect("an answer").status()
        };
        assert_eq!(ask("Bearer old").await, 200);
        fs::write(&file.0, " new \n").expect("a file");
        assert_eq!(ask("Bearer old").await, 200, "not read for every request");
        assert_eq!(ask("Bearer new").await, 401);
        assert_eq!(ask("Bearer new").await, 200);
        fs::remove_file(&file.0).expect("it is there");
        assert_eq!(ask("Bearer other").await, 401);
        assert_eq!(ask("Bearer new").await, 200, "the last one stays");
    }

    #[test]
    fn a_file_without_a_token_is_named() {
        let file = File::new("empty", "\n");
        for path in [file.0.clone(), "/no/such/token".into()] {
            let error = format!("{:#}", TokenFile::open(path.clone()).expect_err("no token"));
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        assert!(!format!("{:?}", TokenFile::open(File::new("shown", "secret").0.clone())).contains("secret"));
    }
}
