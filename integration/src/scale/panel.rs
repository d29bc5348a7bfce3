//! What a report shows as one: a question, a question at several rates, or the layers of a whole; each a chart and a table.

use super::question::{
    CHANGING, CONNECTING, DISTURBANCES, FIRST_SYNC, FOOTPRINT, LIVE_CLUSTER, Question, RATES, Rate, STACKS,
    Stack,
};
use super::results::Results;
use super::table::{cell, comparisons};
use super::{chart, rate_chart, stack_chart};

/// One chart, one table.
#[derive(Debug)]
pub enum Panel {
    One(&'static Question),
    /// With the question at each rate.
    Rates(&'static Rate, Vec<(u32, Question)>),
    Stack(&'static Stack),
}

/// A table: what stands above its columns, and rows with what stands before them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<String>)>,
}

/// Those that these results have anything to say about, in the order of a report.
pub fn panels(results: &Results) -> Vec<Panel> {
    let one = |questions: &'static [Question]| {
        questions.iter().flat_map(|question| {
            let parts = STACKS.iter().filter(move |(of, _)| *of == question.measure);
            std::iter::once(Panel::One(question)).chain(parts.map(|(_, stack)| Panel::Stack(stack)))
        })
    };
    let rates = RATES.iter().map(|rate| Panel::Rates(rate, rate.points(results)));
    let all = one(FIRST_SYNC).chain(one(CHANGING)).chain(rates);
    let all = all.chain(one(FOOTPRINT)).chain(one(CONNECTING));
    let all = all.chain(one(DISTURBANCES)).chain(one(LIVE_CLUSTER));
    all.filter(|panel| !panel.grid(results).rows.is_empty()).collect()
}

impl Panel {
    /// A name for anchors and files.
    pub fn slug(&self) -> String {
        match self {
            Self::One(question) => question.slug(),
            Self::Rates(rate, _) => rate.slug(),
            Self::Stack(stack) => stack.slug.to_owned(),
        }
    }

    pub(crate) fn title(&self) -> &str {
        match self {
            Self::One(question) => &question.title,
            Self::Rates(rate, _) => rate.title,
            Self::Stack(stack) => stack.title,
        }
    }

    pub(crate) fn how(&self) -> &str {
        match self {
            Self::One(question) => question.how,
            Self::Rates(rate, _) => rate.how,
            Self::Stack(stack) => stack.how,
        }
    }

    /// As SVG, to stand alone too.
    pub fn chart(&self, results: &Results) -> Option<String> {
        match self {
            Self::One(question) => chart::svg(results, question),
            Self::Rates(rate, points) => rate_chart::svg(results, rate, points),
            Self::Stack(stack) => stack_chart::svg(results, stack),
        }
    }

    /// Each question of this with a name for its rows: nothing, or the rate.
    pub(crate) fn questions(&self) -> Vec<(String, &Question)> {
        match self {
            Self::One(question) => vec![(String::new(), *question)],
            Self::Rates(_, points) => {
                points.iter().map(|(rate, question)| (format!(", {rate} a second"), question)).collect()
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
            questions.iter().any(|(_, question)| results.contenders_of(&question.measure).contains(name))
        };
        let names: Vec<&str> = results.all_names().into_iter().filter(answers).collect();
        let rows = rows(results, &questions).map(|(label, workload, question)| {
            (label, names.iter().map(|name| cell(results, question, workload, name)).collect())
        });
        let rows = rows.collect();
        Grid { head: names.into_iter().map(str::to_owned).collect(), rows }
    }

    /// How the others stand to the first contender, line by line.
    pub(crate) fn comparisons(&self, results: &Results, all: &[Results]) -> Vec<String> {
        rows(results, &self.questions())
            .flat_map(|(label, workload, question)| {
                let lines = comparisons(results, all, question, workload);
                lines.into_iter().map(move |line| format!("{label}: {line}"))
            })
            .collect()
    }
}

/// For each workload all its questions.
fn rows<'a>(
    results: &'a Results,
    questions: &'a [(String, &'a Question)],
) -> impl Iterator<Item = (String, &'a str, &'a Question)> {
    results.all_workloads().into_iter().flat_map(move |workload| {
        questions
            .iter()
            .filter(move |(_, question)| results.workloads_of(&question.measure).contains(&workload))
            .map(move |(rate, question)| (format!("{workload}{rate}"), workload, *question))
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

    use super::{Panel, panels};
    use crate::scale::machine::Machine;
    use crate::scale::results::{Results, Sample};

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
        assert!(panels.len() > crate::scale::question::questions().count() + 5);
    }
}
