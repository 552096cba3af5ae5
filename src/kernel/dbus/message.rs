//! Messages of D-Bus ("Message Protocol").

/// The longest message that is read, in bytes. The specification allows 128 MiB; answers here are a few words.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// An interface of an object.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// The bus name of its owner.
    pub destination: &'static str,
    pub path: &'static str,
    pub name: &'static str,
}

/// The first value of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Bool(bool),
    /// None, or one of a type that no caller needs.
    Other,
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({name})")]
pub struct Refused {
    pub name: String,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer on the system bus cannot be parsed")]
pub struct Malformed;

/// A method call, little-endian.
pub(super) fn call(serial: u32, interface: Interface, method: &str, arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for argument in arguments {
        put_string(&mut body, argument);
    }
    let mut bytes = vec![b'l', 1, 0, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(serial.to_le_bytes());
    bytes.extend([0; 4]);
    let fields = [
        (1, b'o', interface.path),
        (2, b's', interface.name),
        (3, b's', method),
        (6, b's', interface.destination),
    ];
    for (code, kind, value) in fields {
        pad(&mut bytes, 8);
        bytes.extend([code, 1, kind, 0]);
        put_string(&mut bytes, value);
    }
    if !arguments.is_empty() {
        pad(&mut bytes, 8);
        bytes.extend([8, 1, b'g', 0, arguments.len() as u8]);
        bytes.extend(arguments.iter().map(|_| b's'));
        bytes.push(0);
    }
    let fields = bytes.len() as u32 - 16;
    bytes[12..16].copy_from_slice(&fields.to_le_bytes());
    pad(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

pub(super) fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

pub(super) fn put_string(bytes: &mut Vec<u8>, value: &str) {
    pad(bytes, 4);
    bytes.extend((value.len() as u32).to_le_bytes());
    bytes.extend(value.as_bytes());
    bytes.push(0);
}

/// The length of a message, from its first 16 bytes.
pub(super) fn length(start: &[u8]) -> Result<usize, Malformed> {
    let [body, fields] = [4, 12].map(|at| Reader::at(start, at).and_then(|mut it| it.u32()));
    let length = (16 + fields? as usize).next_multiple_of(8) + body? as usize;
    match length <= MAX_MESSAGE {
        true => Ok(length),
        false => Err(Malformed),
    }
}

/// Parses a message: the answer to the call with this serial number, or `None` if it is another message.
///
/// # Errors
/// If it is no message of D-Bus, or its end is missing.
pub fn answer(bytes: &[u8], serial: u32) -> Result<Option<Result<Value, Refused>>, Malformed> {
    let mut reader = Reader::at(bytes, 12)?;
    let end = 16 + reader.u32()? as usize;
    let (mut reply_to, mut name, mut signature) = (None, String::new(), String::new());
    while reader.at < end {
        reader.align(8);
        let code = reader.u8()?;
        match (code, reader.signature()?.as_str()) {
            (4, "s") => name = reader.string()?,
            (5, "u") => reply_to = Some(reader.u32()?),
            (8, "g") => signature = reader.signature()?,
            (_, "u") => drop(reader.u32()?),
            (_, "s" | "o") => drop(reader.string()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(Malformed),
        }
    }
    reader.align(8);
    let value = match signature.bytes().next() {
        Some(b's') => Value::Text(reader.string()?),
        Some(b'b') => Value::Bool(reader.u32()? != 0),
        _ => Value::Other,
    };
    let is_answer = reply_to == Some(serial);
    Ok(match (bytes[1], value) {
        (2, value) if is_answer => Some(Ok(value)),
        (3, Value::Text(text)) if is_answer => Some(Err(Refused { name, text })),
        (3, _) if is_answer => {
            let text = String::new();
            Some(Err(Refused { name, text }))
        }
        _ => None,
    })
}

/// Reads values of a message ("Marshaling").
struct Reader<'m> {
    bytes: &'m [u8],
    at: usize,
    is_big_endian: bool,
}

impl<'m> Reader<'m> {
    fn at(bytes: &'m [u8], at: usize) -> Result<Reader<'m>, Malformed> {
        let is_big_endian = match bytes.first_chunk() {
            Some([b'l', _, _, 1]) => false,
            Some([b'B', _, _, 1]) => true,
            _ => return Err(Malformed),
        };
        Ok(Reader {
            bytes,
            at,
            is_big_endian,
        })
    }

    fn align(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    fn take(&mut self, count: usize) -> Result<&'m [u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4);
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(match self.is_big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.u8()?.into();
        self.text(length)
    }

    /// A text of this length and the zero byte after it.
    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let text = self.take(length)?.to_vec();
        match self.u8()? {
            0 => String::from_utf8(text).map_err(|_| Malformed),
            _ => Err(Malformed),
        }
    }
}
