//! What a report shows as one: a question with all its quantiles, a question at several rates, or the layers of a whole;
//! each a chart and a table.

use super::comparison::{cell, comparisons};
use super::question::{
    CHANGING, CONNECTING, DISTURBANCES, FIRST_SYNC, FOOTPRINT, LIVE_CLUSTER, Question, RATES, Rate, STACKS,
    Stack,
};
use super::results::Results;
use super::{chart, rate_chart, stack_chart};

/// One chart, one table.
#[derive(Debug)]
pub enum Panel {
    /// The same measure in every question; the first names the panel.
    One(&'static [Question]),
    /// With the question at each rate.
    Rates(&'static Rate, Vec<(u32, Question)>),
    Stack(&'static Stack),
}

/// One question of a panel.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// What it adds to the name of its row: nothing, a quantile, or a rate.
    row: String,
    pub(crate) title: String,
    pub(crate) question: &'a Question,
}

/// Panels about one thing.
#[derive(Debug)]
pub struct Topic {
    pub(crate) title: &'static str,
    pub panels: Vec<Panel>,
}

/// A table: what stands above its columns, and rows with what stands before them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<String>)>,
}

/// All that these results have anything to say about, in the order of a report.
pub fn topics(results: &Results) -> Vec<Topic> {
    let ones = |questions: &'static [Question]| {
        questions.chunk_by(|one, next| one.measure == next.measure).flat_map(|same| {
            let parts = STACKS.iter().filter(move |(of, _)| *of == same[0].measure);
            std::iter::once(Panel::One(same)).chain(parts.map(|(_, stack)| Panel::Stack(stack)))
        })
    };
    let rates = RATES.iter().map(|rate| Panel::Rates(rate, rate.points(results)));
    let topics = [
        ("From the start until everything works", ones(FIRST_SYNC).collect::<Vec<Panel>>()),
        ("Changes", ones(CHANGING).chain(rates).collect()),
        ("What it costs the node", ones(FOOTPRINT).collect()),
        ("New connections", ones(CONNECTING).collect()),
        ("Endpoints that end, restarts, changes of the mode", ones(DISTURBANCES).collect()),
        ("The live cluster", ones(LIVE_CLUSTER).collect()),
    ];
    let answered = topics.into_iter().map(|(title, mut panels)| {
        panels.retain(|panel| !panel.grid(results).rows.is_empty());
        Topic { title, panels }
    });
    answered.filter(|topic| !topic.panels.is_empty()).collect()
}

impl Panel {
    /// A name for anchors and files.
    pub fn slug(&self) -> String {
        match self {
            Self::One(same) => same[0].slug(),
            Self::Rates(rate, _) => rate.slug(),
            Self::Stack(stack) => stack.slug.to_owned(),
        }
    }

    pub(crate) fn title(&self) -> &str {
        match self {
            Self::One(same) => &same[0].title,
            Self::Rates(rate, _) => rate.title,
            Self::Stack(stack) => stack.title,
        }
    }

    pub(crate) fn how(&self) -> String {
        match self {
            Self::One([only]) => only.how.to_owned(),
            Self::One(same) => {
                let hollow: Vec<&str> = same[1..].iter().map(|question| &*question.title).collect();
                format!("{} Full marks are medians, hollow ones: {}.", same[0].how, hollow.join(", "))
            }
            Self::Rates(rate, _) => rate.how.to_owned(),
            Self::Stack(stack) => stack.how.to_owned(),
        }
    }

    /// As SVG, to stand alone too.
    pub fn chart(&self, results: &Results) -> Option<String> {
        match self {
            Self::One(same) => chart::svg(results, same),
            Self::Rates(rate, points) => rate_chart::svg(results, rate, points),
            Self::Stack(stack) => stack_chart::svg(results, stack),
        }
    }

    /// Each question of this; the layers of a whole are none.
    pub(crate) fn questions(&self) -> Vec<Asked<'_>> {
        match self {
            Self::One([only]) => {
                vec![Asked { row: String::new(), title: only.title.clone().into_owned(), question: only }]
            }
            Self::One(same) => {
                let asked = same.iter().enumerate().map(|(index, question)| {
                    let quantile = if index == 0 { "median" } else { &question.title };
                    let title = format!("{} ({quantile})", self.title());
                    Asked { row: format!(", {quantile}"), title, question }
                });
                asked.collect()
            }
            Self::Rates(rate, points) => {
                let asked = points.iter().map(|(per_second, question)| Asked {
                    row: format!(", {per_second} a second"),
                    title: format!("{} ({per_second})", rate.title),
                    question,
                });
                asked.collect()
            }
            Self::Stack(_) => Vec::new(),
        }
    }

    pub(crate) fn grid(&self, results: &Results) -> Grid {
        if let Self::Stack(stack) = self {
            return stack_grid(results, stack);
        }
        let questions = self.questions();
        let answers = |name: &&str| {
            questions.iter().any(|asked| results.contenders_of(&asked.question.measure).contains(name))
        };
        let names: Vec<&str> = results.all_names().into_iter().filter(answers).collect();
        let rows = rows(results, &questions).map(|(label, workload, question)| {
            (label, names.iter().map(|name| cell(results, question, workload, name)).collect())
        });
        let rows = rows.collect();
        Grid { head: names.into_iter().map(str::to_owned).collect(), rows }
    }

    /// How the others stand to the first contender: a line for each row.
    pub(crate) fn comparisons(&self, results: &Results, all: &[Results]) -> Vec<String> {
        rows(results, &self.questions())
            .filter_map(|(label, workload, question)| {
                let others = comparisons(results, all, question, workload);
                (!others.is_empty()).then(|| format!("{label}: {}", others.join("; ")))
            })
            .collect()
    }
}

/// For each workload all its questions.
fn rows<'a>(
    results: &'a Results,
    questions: &'a [Asked<'a>],
) -> impl Iterator<Item = (String, &'a str, &'a Question)> {
    results.all_workloads().into_iter().flat_map(move |workload| {
        questions
            .iter()
            .filter(move |asked| results.workloads_of(&asked.question.measure).contains(&workload))
            .map(move |asked| (format!("{workload}{}", asked.row), workload, asked.question))
    })
}

fn stack_grid(results: &Results, stack: &Stack) -> Grid {
    let contenders = stack.contenders(results);
    let used: Vec<&Question> =
        stack.layers.iter().filter(|layer| !results.workloads_of(&layer.measure).is_empty()).collect();
    let mut rows = Vec::new();
    for workload in stack.workloads(results) {
        for name in &contenders {
            let cells: Vec<String> = used.iter().map(|layer| cell(results, layer, workload, name)).collect();
            rows.push((format!("{workload}, {name}"), cells));
        }
    }
    Grid { head: used.iter().map(|layer| layer.title.clone().into_owned()).collect(), rows }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Panel, topics};
    use crate::scale::machine::Machine;
    use crate::scale::results::{Results, Sample};

    fn panels(results: &Results) -> Vec<Panel> {
        topics(results).into_iter().flat_map(|topic| topic.panels).collect()
    }

    fn results(samples: &[(&str, &str, f64)]) -> Results {
        let mut results = Results::new(vec!["run".to_owned()], 1, 1, Machine::look());
        results.samples = samples
            .iter()
            .map(|(measure, contender, value)| Sample {
                measure: (*measure).to_owned(),
                contender: (*contender).to_owned(),
                workload: "10x1".to_owned(),
                repetition: 1,
                values: vec![*value],
                unfinished: None,
                load: 0.5,
            })
            .collect();
        results
    }

    #[test]
    fn all_rates_of_one_question_are_one_chart_with_a_row_for_each() {
        let results = results(&[
            ("churn-1000-cpu", "one", 0.5),
            ("churn-10-cpu", "one", 0.01),
            ("churn-10-cpu", "other", 0.02),
        ]);
        let panels = panels(&results);
        let [panel] = &*panels else { panic!("one panel: {panels:?}") };
        let grid = panel.grid(&results);
        assert_eq!(grid.head, ["one", "other"]);
        let labels: Vec<&str> = grid.rows.iter().map(|(label, _)| &**label).collect();
        assert_eq!(labels, ["10x1, 10 a second", "10x1, 1000 a second"]);
        assert_eq!(grid.rows[1].1, ["50.0 % of a CPU (1 run)", "–"]);
        let chart = panel.chart(&results).expect("there is something to draw");
        assert_eq!(chart.matches("<polyline").count(), 2);
    }

    #[test]
    fn quantiles_of_one_measure_are_one_chart() {
        let mut results = results(&[("one-change", "one", 0.0)]);
        results.samples[0].values = (1..=101).map(f64::from).collect();
        let panels = panels(&results);
        let [panel] = &*panels else { panic!("one panel: {panels:?}") };
        let rows = panel.grid(&results).rows;
        let shown: Vec<(&str, &str)> = rows.iter().map(|(label, cells)| (&**label, &*cells[0])).collect();
        assert_eq!(shown[0], ("10x1, median", "51.0 s (1 run)"));
        assert_eq!(shown[3], ("10x1, the slowest", "101 s (1 run)"));
        let chart = panel.chart(&results).expect("there is something to draw");
        assert_eq!(chart.matches("<title>").count(), 1 + 4, "one for the chart, one for each mark");
    }

    #[test]
    fn layers_are_shown_as_shares_of_their_sum() {
        let results = results(&[("first-sync-list", "one", 0.3), ("first-sync-kernel", "one", 0.1)]);
        let panels = panels(&results);
        let [panel @ Panel::Stack(_)] = &*panels else { panic!("one panel: {panels:?}") };
        assert_eq!(panel.grid(&results).head, ["list", "kernel"]);
        let chart = panel.chart(&results).expect("there is something to draw");
        assert!(
            chart.contains(">75 %<") && chart.contains(">25 %<") && chart.contains(">400 ms<"),
            "{chart}"
        );
    }

    #[test]
    fn no_two_panels_share_a_name_or_a_title() {
        let mut samples = Vec::new();
        for question in crate::scale::question::questions() {
            samples.push((&*question.measure, "one", 1.0));
        }
        for measure in [
            "churn-10",
            "churn-10-cpu",
            "churn-10-backlog",
            "churn-10-failed",
            "first-sync-list",
            "objects-sets",
        ] {
            samples.push((measure, "one", 1.0));
        }
        let panels = panels(&results(&samples));
        let slugs: HashSet<String> = panels.iter().map(Panel::slug).collect();
        let titles: HashSet<&str> = panels.iter().map(Panel::title).collect();
        assert_eq!((slugs.len(), titles.len()), (panels.len(), panels.len()));
        let rows: HashSet<String> =
            panels.iter().flat_map(Panel::questions).map(|asked| asked.title).collect();
        assert_eq!(rows.len(), panels.iter().map(|panel| panel.questions().len()).sum::<usize>());
    }
}
