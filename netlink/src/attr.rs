//! Writing netlink messages by appending to one buffer, and reading their attributes without ever panicking.
//!
//! Nothing here allocates per attribute or returns a `Result`: the only thing that can go wrong while writing is an
//! attribute longer than its 16-bit length field, which is remembered (`overflowed`) and refused when sent.

/// Set in an attribute's type when its value is a list of attributes (`NLA_F_NESTED`).
pub const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are the type (`NLA_TYPE_MASK`).
pub const TYPE_MASK: u16 = 0x3fff;
/// The longest an attribute can be, header included: its length field has 16 bits.
pub const MAX_ATTRIBUTE: usize = u16::MAX as usize;

const HEADER: usize = 4;

/// An append-only buffer of messages.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    overflowed: bool,
}

/// A nested attribute that is still being written: where its header stands.
#[derive(Debug)]
#[must_use = "a nest has no length until `end` is called"]
pub struct Nest(usize);

impl Nest {
    /// Where in the buffer the attribute's header stands.
    pub const fn offset(&self) -> usize {
        self.0
    }
}

impl Writer {
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), overflowed: false }
    }

    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), overflowed: false }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets the contents, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.overflowed = false;
    }

    /// Takes back everything written after `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Whether some attribute was longer than an attribute can be, so that the contents cannot be sent.
    pub const fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Appends bytes that are no attribute: a family header, or whole attributes made beforehand.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Overwrites bytes written before; `offset + bytes.len()` lies within what was written.
    #[inline]
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    #[inline]
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.header(kind, value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    #[inline]
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    #[inline]
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    #[inline]
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    #[inline]
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    #[inline]
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    #[inline]
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    #[inline]
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with the NUL that most kernel policies ask for.
    #[inline]
    pub fn str(&mut self, kind: u16, value: &str) {
        self.header(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// An attribute without a value.
    #[inline]
    pub fn flag(&mut self, kind: u16) {
        self.header(kind, 0);
    }

    /// Opens a nested attribute, marked with `NLA_F_NESTED`.
    #[inline]
    pub fn begin(&mut self, kind: u16) -> Nest {
        self.begin_unmarked(kind | NESTED)
    }

    /// Opens a nested attribute whose type goes out as given.
    #[inline]
    pub fn begin_unmarked(&mut self, kind: u16) -> Nest {
        let at = self.bytes.len();
        self.header(kind, 0);
        Nest(at)
    }

    /// Closes a nested attribute by writing its length.
    #[inline]
    pub fn end(&mut self, nest: Nest) {
        let length = self.bytes.len() - nest.0;
        self.overflowed |= length > MAX_ATTRIBUTE;
        self.patch(nest.0, &(length as u16).to_ne_bytes());
    }

    /// A nested attribute written by `fill`.
    #[inline]
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let nest = self.begin(kind);
        fill(self);
        self.end(nest);
    }

    /// Fills up to a multiple of four bytes.
    #[inline]
    pub fn pad(&mut self) {
        let padding = self.bytes.len().wrapping_neg() & 3;
        self.bytes.extend_from_slice(&[0; 3][..padding]);
    }

    #[inline]
    fn header(&mut self, kind: u16, value: usize) {
        let length = HEADER + value;
        self.overflowed |= length > MAX_ATTRIBUTE;
        let [a, b] = (length as u16).to_ne_bytes();
        let [c, d] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[a, b, c, d]);
    }
}

/// The attributes in a stretch of bytes. Ends early where a length makes no sense.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The first attribute of this type.
    pub fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        self.clone().find(|attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let &[a, b, c, d, ..] = self.0 else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind: u16::from_ne_bytes([c, d]) & TYPE_MASK, value })
    }
}

/// One attribute. The readers of fixed size answer `None` when the value is shorter than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The type, without the flags in its upper bits.
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub fn u16(&self) -> Option<u16> {
        self.value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
    }

    pub fn u32(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub fn u64(&self) -> Option<u64> {
        self.value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    pub fn be16(&self) -> Option<u16> {
        self.value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub fn be32(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub fn be64(&self) -> Option<u64> {
        self.value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The string up to its NUL, if it is UTF-8.
    pub fn str(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).ok()
    }

    pub const fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::new();
        writer.u8(1, 7);
        writer.be16(2, 0x1234);
        writer.nest(3, |inner| {
            inner.str(4, "abcd");
            inner.be32(5, 0xdead_beef);
            inner.flag(6);
        });
        writer.u64(7, 1 << 40);
        assert_eq!(writer.len() % 4, 0);

        let read: Vec<_> = Attributes::new(writer.as_bytes()).collect();
        assert_eq!(read.iter().map(|a| a.kind).collect::<Vec<_>>(), [1, 2, 3, 7]);
        assert_eq!(read[0].u8(), Some(7));
        assert_eq!(read[1].be16(), Some(0x1234));
        let inner: Vec<_> = read[2].nested().collect();
        assert_eq!(inner[0].str(), Some("abcd"));
        assert_eq!(inner[1].be32(), Some(0xdead_beef));
        assert_eq!(inner[2].value, b"");
        assert_eq!(read[3].u64(), Some(1 << 40));
    }

    #[test]
    fn an_attribute_of_three_bytes_is_padded_and_says_three() {
        let mut writer = Writer::new();
        writer.bytes(9, &[1, 2, 3]);
        assert_eq!(writer.as_bytes(), [7, 0, 9, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn a_nest_beyond_its_length_field_is_noticed() {
        let mut writer = Writer::new();
        writer.nest(1, |inner| inner.bytes(2, &[0; 65_524]));
        assert!(!writer.overflowed());
        writer.nest(1, |inner| inner.bytes(2, &[0; 65_528]));
        assert!(writer.overflowed());
        writer.clear();
        assert!(!writer.overflowed());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for attribute in Attributes::new(&bytes) {
                let _ = (attribute.u8(), attribute.be16(), attribute.be32(), attribute.be64(), attribute.str());
                prop_assert!(attribute.nested().count() <= bytes.len() / 4);
            }
        }
    }
}
