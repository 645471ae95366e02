//! Behind this module stands regorus, both of its engines. The bytecode machine counts instructions, so that a policy
//! that never ends is denied the same way everywhere; but it takes a failing builtin for a rule that does not hold,
//! and would then admit. The interpreter reports that failure, so that its answer is the one that counts.

use std::num::NonZeroU32;
use std::sync::Arc;

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::{Program, RegoVM};
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use super::{MAX_POLICY_INSTRUCTIONS, MAX_POLICY_TIME, PolicyError, PolicySource};

const PACKAGE: &str = "data.cnova.admission";
const DENY: &str = "data.cnova.admission.deny";

/// Words that v0 takes for identifiers unless they are imported. The parser only prints a warning.
const FUTURE_KEYWORDS: [&str; 4] = ["contains", "every", "if", "in"];

/// One admission policy, ready to run.
#[derive(Clone)]
pub(super) struct Compiled {
    name: String,
    program: Arc<Program>,
    interpreter: Engine,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A text whose version and package are known.
struct Parsed<'a> {
    source: &'a PolicySource,
    v0: bool,
    package: String,
}

/// Compiles every admission policy, each with all libraries.
pub(super) fn compile(sources: &[PolicySource]) -> Result<Vec<Compiled>, PolicyError> {
    let mut parsed = sources.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    parsed.sort_by(|a, b| a.source.name.cmp(&b.source.name));
    let (admission, libraries): (Vec<_>, Vec<_>) = parsed.into_iter().partition(|p| p.package == PACKAGE);
    admission.iter().map(|policy| compile_one(policy, &libraries)).collect()
}

/// v1 first: v1 text in a v0 engine parses, with a warning that nobody sees, and then means something else.
fn parse(source: &PolicySource) -> Result<Parsed<'_>, PolicyError> {
    let as_v1 = match add(&mut Engine::new(), source, false) {
        Ok(package) => {
            return Ok(Parsed {
                source,
                v0: false,
                package,
            });
        }
        Err(message) => message,
    };
    let Ok(package) = add(&mut Engine::new(), source, true) else {
        return Err(PolicyError::Syntax {
            name: source.name.clone(),
            message: as_v1,
        });
    };
    match keyword_without_import(&source.text) {
        Some((line, word)) => Err(PolicyError::KeywordWithoutImport {
            name: source.name.clone(),
            line,
            word,
        }),
        None => Ok(Parsed {
            source,
            v0: true,
            package,
        }),
    }
}

fn add(engine: &mut Engine, source: &PolicySource, v0: bool) -> Result<String, String> {
    engine.set_rego_v0(v0);
    engine
        .add_policy(source.name.clone(), source.text.clone())
        .map_err(|e| e.to_string().trim().to_owned())
}

fn compile_one(policy: &Parsed<'_>, libraries: &[Parsed<'_>]) -> Result<Compiled, PolicyError> {
    let name = policy.source.name.clone();
    let failed = |message: String| PolicyError::Compile {
        name: name.clone(),
        message: message.trim().to_owned(),
    };
    let mut engine = Engine::new();
    for library in libraries {
        add(&mut engine, library.source, library.v0).map_err(failed)?;
    }
    add(&mut engine, policy.source, policy.v0).map_err(failed)?;
    match engine.has_declared_rule_rooted_at(&name, "deny") {
        Ok(true) => {}
        Ok(false) => return Err(PolicyError::NoDenyRule { name }),
        Err(e) => return Err(failed(e.to_string())),
    }
    let compiled = engine
        .compile_with_entrypoint(&DENY.into())
        .map_err(|e| failed(e.to_string()))?;
    let program = Compiler::compile_from_policy(&compiled, &[DENY]).map_err(|e| failed(e.to_string()))?;
    engine.set_strict_builtin_errors(true);
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: MAX_POLICY_TIME,
        check_interval: NonZeroU32::new(1_000).unwrap_or(NonZeroU32::MIN),
    });
    Ok(Compiled {
        name,
        program,
        interpreter: engine,
    })
}

impl Compiled {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The messages of `deny`; empty means that the policy has nothing against it.
    pub(super) fn deny(&self, input: &str) -> Result<Vec<String>, String> {
        let input = Value::from_json_str(input).map_err(|e| one_line(&e))?;
        self.count_instructions(input.clone())?;
        let mut interpreter = self.interpreter.clone();
        interpreter.set_input(input);
        match interpreter.eval_rule(DENY.to_owned()).map_err(|e| one_line(&e))? {
            Value::Set(messages) => messages.iter().map(message).collect(),
            other => Err(format!("deny is not a set of messages but {other}")),
        }
    }

    /// Fails if the policy takes too long for this input.
    fn count_instructions(&self, input: Value) -> Result<(), String> {
        let mut vm = RegoVM::new();
        vm.load_program(Arc::clone(&self.program));
        vm.set_max_instructions(MAX_POLICY_INSTRUCTIONS);
        vm.set_data(Value::new_object()).map_err(|e| one_line(&e))?;
        vm.set_input(input);
        vm.execute_entry_point_by_name(DENY)
            .map(|_| ())
            .map_err(|e| one_line(&e))
    }
}

/// The parser draws the line with an arrow below; in a reason only the last line says something.
fn one_line(error: &impl ToString) -> String {
    let text = error.to_string();
    let last = text.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

fn message(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.to_string()),
        other => Err(format!("deny holds {other} where a message belongs")),
    }
}

/// The first future keyword that a v0 text uses without importing it. Strings and comments do not count, and neither
/// does `contains(`, which is a function.
fn keyword_without_import(text: &str) -> Option<(usize, &'static str)> {
    let imports = |word: &str| {
        text.lines().map(str::trim).any(|line| {
            line.strip_prefix("import").is_some_and(|rest| {
                let path = rest.trim();
                path == "rego.v1" || path == "future.keywords" || path == format!("future.keywords.{word}")
            })
        })
    };
    let bare = without_strings_and_comments(text);
    for (index, line) in bare
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim_start().starts_with("import"))
    {
        for (start, word) in words(line) {
            let Some(keyword) = FUTURE_KEYWORDS.into_iter().find(|k| *k == word) else {
                continue;
            };
            let called = line[start + word.len()..].trim_start().starts_with('(');
            let harmless = line[..start].ends_with('.') || (keyword == "contains" && called) || imports(keyword);
            if !harmless {
                return Some((index + 1, keyword));
            }
        }
    }
    None
}

fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
        .map(move |w| (w.as_ptr().addr() - line.as_ptr().addr(), w))
}

fn without_strings_and_comments(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut chars = text.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\n') => bare.push('\n'),
            (Some('"'), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`') => quote = Some(c),
            (None, '#') => quote = Some('\u{0}'),
            (None, c) => bare.push(c),
        }
        // A comment ends with its line.
        if c == '\n' && quote == Some('\u{0}') {
            quote = None;
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn future_keywords_in_v0_text() {
        assert_eq!(
            keyword_without_import("package a\ndeny[x] { x := 1 if true }"),
            Some((2, "if"))
        );
        assert_eq!(
            keyword_without_import("package a\nimport future.keywords.if\nx := 1 if true"),
            None
        );
        assert_eq!(
            keyword_without_import("x { contains(a, \"if\") } # every day in May"),
            None
        );
        assert_eq!(keyword_without_import("x { input.if == `in` }"), None);
        assert_eq!(keyword_without_import("deny contains x"), Some((1, "contains")));
    }
}
