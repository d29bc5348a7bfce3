//! A rule: expressions worked off in order, and a comment.

use std::fmt;

use netlink::Writer;

use crate::{
    datatype::put_comment,
    expression::Expression,
    uapi::{LIST_ELEMENT, rule},
};

/// A rule, without saying in which chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub expressions: Vec<Expression>,
    pub comment: Option<Box<str>>,
}

impl Rule {
    pub const fn new() -> Self {
        Self { expressions: Vec::new(), comment: None }
    }

    /// Adds a step.
    #[must_use]
    pub fn with(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// Adds steps.
    #[must_use]
    pub fn with_all(mut self, expressions: impl IntoIterator<Item = Expression>) -> Self {
        self.expressions.extend(expressions);
        self
    }

    #[must_use]
    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = Some(comment.into());
        self
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        let list = writer.begin(rule::EXPRESSIONS);
        for expression in &self.expressions {
            expression.write(writer, LIST_ELEMENT);
        }
        writer.end(list);
        if let Some(comment) = &self.comment {
            put_comment(writer, rule::USERDATA, comment);
        }
    }
}

impl FromIterator<Expression> for Rule {
    fn from_iter<I: IntoIterator<Item = Expression>>(expressions: I) -> Self {
        Self { expressions: expressions.into_iter().collect(), comment: None }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, expression) in self.expressions.iter().enumerate() {
            write!(f, "{}{expression}", if index == 0 { "" } else { "; " })?;
        }
        match &self.comment {
            Some(comment) => write!(f, " # {comment}"),
            None => Ok(()),
        }
    }
}
