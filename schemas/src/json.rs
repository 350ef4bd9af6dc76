//! The JSON subset of a record: objects, arrays, strings, booleans, null and safe integers.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::id::MAX_INT;

/// A value that has one canonical encoding. A fraction cannot be represented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer within ±(2⁵³ − 1).
    Int(Int),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object; written with its keys sorted by UTF-16 code units (RFC 8785 § 3.2.3).
    Map(BTreeMap<String, Json>),
}

/// An integer within ±(2⁵³ − 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Int(i64);

impl Int {
    /// The value, or nothing when it lies outside.
    #[must_use]
    pub fn new(value: i64) -> Option<Self> {
        (value.unsigned_abs() <= MAX_INT).then_some(Self(value))
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<crate::id::Uint> for Json {
    fn from(value: crate::id::Uint) -> Self {
        Self::Int(Int(i64::try_from(value.get()).unwrap_or(i64::MAX)))
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        crate::id::Uint::new(value).into()
    }
}

impl<T: Into<Json>> From<Vec<T>> for Json {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

impl<const N: usize> From<[(&str, Json); N]> for Json {
    fn from(entries: [(&str, Json); N]) -> Self {
        Self::Map(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(value.0),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(map) => serialize_sorted(map, serializer),
        }
    }
}

/// Writes an object with its keys in UTF-16 order, which differs from the map's own (UTF-8) order
/// only beyond the basic plane.
///
/// # Errors
/// As the serializer.
pub fn serialize_sorted<S: Serializer>(
    map: &BTreeMap<String, Json>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut entries: Vec<_> = map.iter().collect();
    if !map.keys().all(|key| key.is_ascii()) {
        entries.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
    }
    let mut object = serializer.serialize_map(Some(entries.len()))?;
    for (key, value) in entries {
        object.serialize_entry(key, value)?;
    }
    object.end()
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without fractions and with integers within ±(2^53-1)")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Json, E> {
        Int::new(value).map(Json::Int).ok_or_else(|| E::custom("integer beyond ±(2^53-1)"))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        let value = i64::try_from(value).map_err(|_| E::custom("integer beyond 2^53-1"))?;
        self.visit_i64(value)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry::<String, Json>()? {
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("a key stands twice"));
            }
        }
        Ok(Json::Map(map))
    }
}
