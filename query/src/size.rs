//! How large a statement may be, judged from its words before anything recursive sees it.
//!
//! A chain such as `1 + 1 + 1 …` becomes a tree as deep as it is long, and whoever walks such a tree
//! needs stack for each level. Promises: what is accepted here is parsed, planned, run and dropped
//! within the stack of a question's threads, [`STACK_BYTES`]. Judging takes time in proportion to
//! the text, and no recursion.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::QueryError;

/// The stack of a question's threads: addresses only, until somebody needs it.
pub(crate) const STACK_BYTES: usize = 64 << 20;

/// The longest statement. Long lists of values are better sent as parameters.
const MAX_BYTES: usize = 64 << 10;
/// The most keywords, operators, brackets and tables: each may be one level of the tree.
const MAX_PARTS: usize = 1000;
/// The most brackets within brackets.
const MAX_DEPTH: usize = 48;

/// Refuses a statement that is too large.
///
/// # Errors
/// [`QueryError::TooComplex`].
pub(crate) fn check(sql: &str) -> Result<(), QueryError> {
    if sql.len() > MAX_BYTES {
        return Err(QueryError::TooComplex { what: "bytes", limit: MAX_BYTES });
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    let tokens = tokens.map_err(|error| QueryError::Statement(error.to_string()))?;
    let mut parts = 0;
    // For each open bracket, whether a FROM was there: then a comma is a join.
    let mut levels = vec![false];
    for token in &tokens {
        match role(token) {
            Role::Open => levels.push(false),
            Role::Close if levels.len() > 1 => drop(levels.pop()),
            Role::From => levels.iter_mut().last().into_iter().for_each(|from| *from = true),
            Role::Comma if levels.last() != Some(&true) => continue,
            Role::Leaf => continue,
            Role::Close | Role::Comma | Role::Part => {}
        }
        parts += 1;
        if levels.len() > MAX_DEPTH {
            return Err(QueryError::TooComplex { what: "brackets in brackets", limit: MAX_DEPTH });
        }
        if parts > MAX_PARTS {
            let what = "keywords, operators and brackets";
            return Err(QueryError::TooComplex { what, limit: MAX_PARTS });
        }
    }
    Ok(())
}

enum Role {
    Open,
    Close,
    From,
    Comma,
    /// Adds no level.
    Leaf,
    /// May add one.
    Part,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not known to be a leaf may be deep")]
fn role(token: &Token) -> Role {
    match token {
        Token::LParen | Token::LBracket | Token::LBrace => Role::Open,
        Token::RParen | Token::RBracket | Token::RBrace => Role::Close,
        Token::Comma => Role::Comma,
        Token::Word(word) if word.keyword == Keyword::FROM => Role::From,
        Token::Word(word) if word.keyword == Keyword::NoKeyword => Role::Leaf,
        Token::Whitespace(_) | Token::Number(..) | Token::EOF => Role::Leaf,
        Token::SingleQuotedString(_) | Token::Placeholder(_) => Role::Leaf,
        _ => Role::Part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_values_is_accepted_and_a_long_chain_is_not() {
        let list = vec!["'p1'"; 9000].join(", ");
        assert!(check(&format!("SELECT * FROM accesses WHERE subject_id IN ({list})")).is_ok());
        for chain in [
            format!("SELECT 1{}", "+1".repeat(MAX_PARTS)),
            format!("SELECT * FROM calls{}", ",calls".repeat(MAX_PARTS)),
            format!("SELECT {}1{}", "(".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH)),
            format!("SELECT '{}'", "a".repeat(MAX_BYTES)),
        ] {
            let error = check(&chain).expect_err("a chain that is too long");
            assert_eq!(error.status(), http::StatusCode::UNPROCESSABLE_ENTITY);
        }
    }
}
