//! How a check ends early.

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The runtime breaks the interface: what was expected and what came.
    Failed(String),
    /// The fixture says that this kind of runtime cannot do it, and why.
    NotApplicable(String),
    /// This machine or user cannot try it.
    Skipped(String),
}

/// What a check returns; nothing is a pass.
pub type Verdict<T = ()> = Result<T, Stop>;

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        Stop::Failed(text)
    }
}

/// Ends the check with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Stop::Failed(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;
