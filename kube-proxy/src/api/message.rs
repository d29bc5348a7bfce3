//! Protobuf messages, as far as Kubernetes writes them (<https://protobuf.dev/programming-guides/encoding>): numbers, and
//! texts or messages with their length. What is not known is passed over.

use std::fmt;

/// What is wrong with a message, and in which field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    field: String,
    what: &'static str,
}

impl Malformed {
    fn new(what: &'static str) -> Self {
        Self { field: String::new(), what }
    }

    fn within(self, field: &str) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        Self { field: format!("{field}{dot}{}", self.field), what: self.what }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(self.what),
            field => write!(f, "{field}: {}", self.what),
        }
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A number of four or eight bytes, which Kubernetes has none of that matter here.
    Fixed,
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::new("a number where a text or a message belongs")),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::new("it is not UTF-8"))
    }

    pub(crate) fn string(self) -> Result<String, Malformed> {
        self.text().map(str::to_owned)
    }

    /// A text that counts as absent where it is empty: protobuf writes what JSON leaves out.
    pub(crate) fn present(self) -> Result<Option<String>, Malformed> {
        self.text().map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    pub(crate) fn number(self) -> Result<i64, Malformed> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            _ => Err(Malformed::new("something else where a number belongs")),
        }
    }

    /// A number that counts as absent where it is zero.
    pub(crate) fn not_zero(self) -> Result<Option<i64>, Malformed> {
        self.number().map(|number| (number != 0).then_some(number))
    }

    pub(crate) fn truth(self) -> Result<bool, Malformed> {
        self.number().map(|number| number != 0)
    }

    /// A message.
    pub(crate) fn fields(self) -> Result<Fields<'a>, Malformed> {
        self.bytes().map(Fields)
    }
}

/// The fields of a message, in the order in which they come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    /// Hands out every field. An error is one of the field that `names` calls so.
    pub(crate) fn each(
        self,
        names: &[(u32, &str)],
        mut take: impl FnMut(u32, Value<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for field in self {
            let (number, value) = field?;
            take(number, value).map_err(|error| {
                let name = names.iter().find(|(known, _)| *known == number);
                error.within(name.map_or("?", |(_, name)| name))
            })?;
        }
        Ok(())
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let head = Head::read(self.0)?.ok_or(CUT)?;
        let rest = &self.0[head.size..];
        let (value, rest) = match head.kind {
            HeadKind::Number(number) => (Value::Number(number), rest),
            HeadKind::Bytes(length) => {
                let length = usize::try_from(length).map_err(|_| CUT)?;
                let (bytes, rest) = rest.split_at_checked(length).ok_or(CUT)?;
                (Value::Bytes(bytes), rest)
            }
            HeadKind::Fixed(size) => (Value::Fixed, rest.get(size..).ok_or(CUT)?),
        };
        self.0 = rest;
        Ok((head.field, value))
    }
}

const CUT: Malformed = Malformed { field: String::new(), what: "it ends in the middle" };

/// The head of a field; of a number, all of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) field: u32,
    pub(crate) kind: HeadKind,
    pub(crate) size: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum HeadKind {
    Number(u64),
    /// So many bytes follow.
    Bytes(u64),
    Fixed(usize),
}

impl Head {
    /// `None`: not all of it is there.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((key, key_size)) = varint(bytes)? else { return Ok(None) };
        let field = u32::try_from(key >> 3).ok().filter(|field| *field > 0);
        let field = field.ok_or_else(|| Malformed::new("a field of an impossible number"))?;
        let head = |kind, size| Ok(Some(Self { field, kind, size }));
        let rest = &bytes[key_size..];
        match key & 7 {
            0 => match varint(rest)? {
                Some((number, size)) => head(HeadKind::Number(number), key_size + size),
                None => Ok(None),
            },
            2 => match varint(rest)? {
                Some((length, size)) => head(HeadKind::Bytes(length), key_size + size),
                None => Ok(None),
            },
            1 => head(HeadKind::Fixed(8), key_size),
            5 => head(HeadKind::Fixed(4), key_size),
            _ => Err(Malformed::new("a field of an unknown type")),
        }
    }
}

fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((number, index + 1)));
        }
    }
    if bytes.len() < 10 { Ok(None) } else { Err(Malformed::new("a number without an end")) }
}
