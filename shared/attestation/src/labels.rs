//! CBOR maps with integer labels, as EAT (RFC 9711), COSE (RFC 9052) and EAR use them. serde's own derive writes text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Declares a structure whose fields stand under integer labels. Fields are written in the order given: give them in the
/// order of RFC 8949 section 4.2.1 (0, 1, ..., -1, -2, ...; shorter encodings first), optional ones last. Unknown labels
/// are ignored, a label that stands twice is refused.
macro_rules! labelled_map {
    (
        $(#[$doc:meta])*
        struct $name:ident {
            $($field:ident: $type:ty = $label:literal,)*
            $(? $optional:ident: $optional_type:ty = $optional_label:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
            $(pub(crate) $optional: Option<$optional_type>,)*
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let fields = [$($label,)*].len() $(+ usize::from(self.$optional.is_some()))*;
                let mut map = serializer.serialize_map(Some(fields))?;
                $(map.serialize_entry(&i64::from($label), &self.$field)?;)*
                $(if let Some(value) = &self.$optional {
                    map.serialize_entry(&i64::from($optional_label), value)?;
                })*
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Map;
                impl<'de> serde::de::Visitor<'de> for Map {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("a map of labels to the fields of ", stringify!($name)))
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        $(let mut $field: Option<$type> = None;)*
                        $(let mut $optional: Option<$optional_type> = None;)*
                        while let Some($crate::labels::Label(label)) = map.next_key()? {
                            match label {
                                $(Some($label) => $crate::labels::fill(&mut $field, &mut map, $label)?,)*
                                $(Some($optional_label) => {
                                    $crate::labels::fill(&mut $optional, &mut map, $optional_label)?;
                                })*
                                _ => { map.next_value::<serde::de::IgnoredAny>()?; }
                            }
                        }
                        Ok($name {
                            $($field: $field.ok_or_else(|| {
                                serde::de::Error::custom(format!("{} ({}) is missing", stringify!($field), $label))
                            })?,)*
                            $($optional,)*
                        })
                    }
                }
                deserializer.deserialize_map(Map)
            }
        }
    };
}
pub(crate) use labelled_map;

/// Takes the value that stands under a label, once.
pub(crate) fn fill<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    slot: &mut Option<T>,
    map: &mut A,
    label: i64,
) -> Result<(), A::Error> {
    if slot.replace(map.next_value()?).is_some() {
        return Err(serde::de::Error::custom(format!("label {label} stands in it twice")));
    }
    Ok(())
}

/// A label of a map: an integer, or something of another specification.
pub(crate) struct Label(pub(crate) Option<i64>);

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyLabel;
        impl Visitor<'_> for AnyLabel {
            type Value = Label;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or text as a label")
            }
            fn visit_i64<E>(self, label: i64) -> Result<Label, E> {
                Ok(Label(Some(label)))
            }
            fn visit_u64<E>(self, label: u64) -> Result<Label, E> {
                Ok(Label(i64::try_from(label).ok()))
            }
            fn visit_str<E>(self, _: &str) -> Result<Label, E> {
                Ok(Label(None))
            }
        }
        deserializer.deserialize_any(AnyLabel)
    }
}
