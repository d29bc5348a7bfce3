use super::*;
use crate::{Element, Family};

const TABLE: Table<'_> = Table::new(Family::Ip, "t");

#[test]
fn lists_are_joined_only_where_everything_is_the_same() {
    let key = Element::key(&[1; 4]);
    let mut batch = Batch::new();
    for _ in 0..2 {
        assert_eq!(batch.add_elements(TABLE, "s").push(&key).message, 0);
    }
    assert_eq!(batch.create_elements(TABLE, "s").push(&key).message, 1, "another flag");
    assert_eq!(batch.delete_elements(TABLE, "s").push(&key).message, 2, "another message");
    assert_eq!(batch.delete_elements(TABLE, "r").push(&key).message, 3, "another set");
    assert_eq!(
        batch.delete_elements(Table::new(Family::Ip, "u"), "r").push(&key).message,
        4,
        "another table"
    );
    assert_eq!(
        batch.delete_elements(Table::new(Family::Ip6, "u"), "r").push(&key).message,
        5,
        "another family"
    );
    assert_eq!(batch.flush_set(TABLE, "s").message, 6);
    assert_eq!(batch.delete_elements(Table::new(Family::Ip6, "u"), "r").push(&key).message, 7, "in order");
    assert_eq!((batch.messages(), batch.elements()), (8, 8));
}

#[test]
fn a_list_nothing_is_put_into_is_no_message() {
    let mut batch = Batch::new();
    let _ = batch.add_elements(TABLE, "s");
    assert!(batch.is_empty() && batch.bytes().is_empty());
}

#[test]
fn every_byte_of_an_element_belongs_to_it() {
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    for number in 0..3 {
        batch.add_elements(TABLE, "s").push(&Element::key(&[number; 4]));
    }
    batch.close();
    let length = 16;
    let first = batch.len_bytes() - batch.starts[1] - 3 * length;
    for offset in 0..3 * length {
        assert_eq!(batch.element_at(1, first + offset), Some((offset / length) as u32));
    }
    assert_eq!(batch.element_at(1, 0), None, "the message's header");
    assert_eq!(batch.element_at(0, first), None, "no list");
}

#[test]
fn an_element_from_a_template_is_the_element_written_out() {
    let key = [1, 2, 3, 4, 6, 0, 0, 0, 0, 80, 0, 0, 9, 0, 0, 0];
    let data = [10, 0, 0, 1, 31, 144, 0, 0];
    let template = Template::new(16, 8);
    let mut batch = Batch::new();
    let table = TABLE;
    batch.add_elements(table, "s").push(&Element::value(&key, &data));
    batch.add_elements(table, "s").push_fixed(&template, &key, &data);
    let bytes = batch.writer().as_bytes();
    let (_, elements) = bytes.split_at(bytes.len() - 2 * template.length());
    let (written, fixed) = elements.split_at(template.length());
    assert_eq!(written, fixed);
}
