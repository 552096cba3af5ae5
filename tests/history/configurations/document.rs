//! JSON as source text: with duplicate keys, numbers in any notation and invalid strings.

use crate::configurations::test_random::TestRandom;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// A number, string, boolean or null, as source text.
    Literal(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

use Json::{List, Literal, Object};

impl Json {
    /// A string without anything to escape.
    pub fn text(text: &str) -> Json {
        Literal(format!("\"{text}\""))
    }

    pub fn literal(value: impl ToString) -> Json {
        Literal(value.to_string())
    }

    pub fn object<const N: usize>(entries: [(&str, Json); N]) -> Json {
        Object(entries.map(|(key, value)| (key.to_owned(), value)).into())
    }

    /// Sets a key of an object.
    pub fn set(&mut self, key: &str, value: Json) {
        if let Object(entries) = self {
            entries.push((key.to_owned(), value));
        }
    }

    pub fn render(&self) -> String {
        match self {
            Literal(text) => text.clone(),
            List(items) => {
                let items: Vec<String> = items.iter().map(Json::render).collect();
                format!("[{}]", items.join(","))
            }
            Object(entries) => {
                let entry = |(key, value): &(String, Json)| format!("\"{key}\":{}", value.render());
                let entries: Vec<String> = entries.iter().map(entry).collect();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

    /// The number of values, including itself.
    pub fn size(&self) -> usize {
        1 + match self {
            Literal(_) => 0,
            List(items) => items.iter().map(Json::size).sum(),
            Object(entries) => entries.iter().map(|(_, value)| value.size()).sum(),
        }
    }

    /// Calls a closure with the value number `number` in the order of the text; 0 is this value.
    pub fn visit(&mut self, number: usize, work: &mut dyn FnMut(&mut Json)) {
        if number == 0 {
            return work(self);
        }
        let children: Vec<&mut Json> = match self {
            Literal(_) => vec![],
            List(items) => items.iter_mut().collect(),
            Object(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
        };
        let mut before = 1;
        for child in children {
            let size = child.size();
            if number < before + size {
                return child.visit(number - before, work);
            }
            before += size;
        }
    }

    /// All documents that result from removing one value.
    pub fn smaller(&self) -> Vec<Json> {
        let without = |length: usize, make: &dyn Fn(usize) -> Json| -> Vec<Json> {
            (0..length).map(make).collect()
        };
        match self {
            Literal(_) => vec![],
            List(items) => {
                let mut all = without(items.len(), &|at| {
                    let mut items = items.clone();
                    items.remove(at);
                    List(items)
                });
                for (at, item) in items.iter().enumerate() {
                    all.extend(item.smaller().into_iter().map(|item| {
                        let mut items = items.clone();
                        items[at] = item;
                        List(items)
                    }));
                }
                all
            }
            Object(entries) => {
                let mut all = without(entries.len(), &|at| {
                    let mut entries = entries.clone();
                    entries.remove(at);
                    Object(entries)
                });
                for (at, (_, value)) in entries.iter().enumerate() {
                    all.extend(value.smaller().into_iter().map(|value| {
                        let mut entries = entries.clone();
                        entries[at].1 = value;
                        Object(entries)
                    }));
                }
                all
            }
        }
    }
}

/// Changes one value at a random position.
pub fn mutate(document: &mut Json, random: &mut TestRandom) {
    // Often the top level, where most keys are.
    let number = random.choose(&[0, random.0 as usize % document.size()]);
    let random = std::cell::RefCell::new(random);
    document.visit(number, &mut |value| {
        let random = &mut **random.borrow_mut();
        match value {
            Object(entries) if random.below(8) > 0 => mutate_object(entries, random),
            List(items) if random.below(3) > 0 => {
                let at = random.below(items.len() + 1);
                items.insert(at, unusual_value(random));
            }
            value => *value = unusual_value(random),
        }
    });
}

fn mutate_object(entries: &mut Vec<(String, Json)>, random: &mut TestRandom) {
    if entries.is_empty() || random.below(3) == 0 {
        let key = random.choose(&[
            "x",
            "",
            "mtu2",
            "capabilities",
            "\\ud800",
            "\u{fc}",
            "dns",
            "cniVersions",
        ]);
        return entries.push((key.to_owned(), unusual_value(random)));
    }
    let at = random.below(entries.len());
    match random.below(8) {
        0 => {
            entries.remove(at);
        }
        1 => {
            // Duplicates the key at a random position.
            let (key, value) = entries[at].clone();
            let value = if random.below(4) > 0 {
                value
            } else {
                unusual_value(random)
            };
            let index = random.below(entries.len() + 1);
            entries.insert(index, (key, value));
        }
        2..=4 => {
            let key = entries[at].0.clone();
            let again = random.below(6) == 0;
            let spelled = spelled(&key, random);
            match again {
                true => entries.push((spelled, unusual_value(random))),
                false => entries[at].0 = spelled,
            }
        }
        5 | 6 => entries[at].1 = Literal("null".to_owned()),
        _ => entries[at].1 = unusual_value(random),
    }
}

/// A key in another spelling that Go's encoding/json treats as equal.
fn spelled(key: &str, random: &mut TestRandom) -> String {
    match random.below(4) {
        0 => key.to_uppercase(),
        1 => key.to_lowercase(),
        2 => {
            let other = |c: char| match random.below(2) {
                0 => c.to_ascii_uppercase(),
                _ => c.to_ascii_lowercase(),
            };
            key.chars().map(other).collect()
        }
        _ => key.replace('s', "\u{17f}").replace('k', "\u{212a}"),
    }
}

/// An unusual value.
pub fn unusual_value(random: &mut TestRandom) -> Json {
    let literal = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1",
        "1",
        "7",
        "255",
        "256",
        "1500",
        "1500.0",
        "1e3",
        "65536",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "1e400",
        "0.1",
        "\"\"",
        "\"x\"",
        "\" \"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\udc00x\"",
        "\"\\ud83d\\ude00\"",
        "\"\u{1f600}\"",
        "\"10.9.0.7\"",
        "\"10.9.0.0/24\"",
        "\"fd09::7/64\"",
        "\"true\"",
        "\"1.0.0\"",
        "\"auto\"",
        "\"host-local\"",
    ];
    match random.below(12) {
        0 => List(vec![]),
        1 => Object(vec![]),
        2 => List(vec![unusual_value(random)]),
        3 => Object(vec![("a".to_owned(), unusual_value(random))]),
        4 => {
            let depth = random.choose(&[3, 126, 127, 128, 300, 9_990]);
            Literal(format!("{}{}", "[".repeat(depth), "]".repeat(depth)))
        }
        _ => Literal(random.choose(&literal).to_owned()),
    }
}
