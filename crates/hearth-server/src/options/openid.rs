//! How people sign in to the pages by OpenID Connect: the provider, and who may do what.

use std::fmt;
use std::str::FromStr;

use hearth_api::token::Scope;
use hearth_core::tenant::FIRST_TENANT;
use secrecy::SecretString;
use serde_json::Value;

/// The claim that says whose VMs and variables are theirs when nothing else is named.
const OWNER_CLAIM: &str = "email";
/// A provider says of an address whether it has checked it.
const EMAIL: &str = "email";
const EMAIL_VERIFIED: &str = "email_verified";
/// The words of a rule that name no claim.
const SCOPES: &str = "scopes";
const TENANT: &str = "tenant";

/// A provider, and what its users may do here.
#[derive(Debug, Clone)]
pub struct OpenIdSettings {
    /// The provider's address, as its metadata has it: `https://login.example.com/realms/team`.
    pub issuer: String,
    /// The id that the provider gave Hearth.
    pub client: String,
    /// The secret of that id; `None` for a public client. PKCE is used with both.
    pub secret: Option<SecretString>,
    /// The claim whose value is the owner of what somebody makes.
    pub owner_claim: String,
    /// Who may sign in, and as what; the first rule that fits counts.
    pub rules: Vec<SignInRule>,
}

impl OpenIdSettings {
    /// With the usual claims and without a secret; nobody may sign in until there are rules.
    #[must_use]
    pub fn new(issuer: String, client: String) -> Self {
        Self {
            issuer,
            client,
            secret: None,
            owner_claim: OWNER_CLAIM.to_owned(),
            rules: Vec::new(),
        }
    }
}

/// All that decides who is let in, and as whom.
impl fmt::Display for OpenIdSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.issuer, self.client, self.owner_claim)?;
        self.rules.iter().try_for_each(|rule| write!(f, "\n{rule}"))
    }
}

/// Who may sign in, and as what: `groups=platform scopes=admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignInRule {
    conditions: Vec<Condition>,
    /// What they may do.
    pub scopes: Vec<Scope>,
    /// The tenant that they belong to.
    pub tenant: String,
}

/// A claim that must have a value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    claim: String,
    /// The value; a `*` at its beginning or end stands for anything.
    pattern: String,
}

impl SignInRule {
    /// Whether all its conditions hold of somebody with these claims.
    #[must_use]
    pub fn fits(&self, claims: &Value) -> bool {
        self.conditions.iter().all(|condition| condition.holds(claims))
    }
}

impl Condition {
    fn holds(&self, claims: &Value) -> bool {
        match claim(claims, &self.claim) {
            Some(Value::Array(values)) => values.iter().any(|value| self.is_value(value)),
            Some(value) => self.is_value(value),
            None => false,
        }
    }

    fn is_value(&self, value: &Value) -> bool {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => return false,
        };
        match (self.pattern.strip_prefix('*'), self.pattern.strip_suffix('*')) {
            (Some(end), None) => text.ends_with(end),
            (None, Some(start)) => text.starts_with(start),
            // A `*` alone: any value.
            (Some(""), Some("")) => true,
            _ => text == self.pattern,
        }
    }
}

/// A claim by its name, or by its path where it lies deeper: `realm_access.roles`. An address that the provider has not checked is none.
#[must_use]
pub fn claim<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    if name == EMAIL && !matches!(claims.get(EMAIL_VERIFIED), Some(Value::Bool(true))) {
        return None;
    }
    claims
        .get(name)
        .or_else(|| name.split('.').try_fold(claims, |within, part| within.get(part)))
}

impl FromStr for SignInRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut conditions, mut scopes, mut tenant) = (Vec::new(), None, None);
        let words = shlex::split(text).ok_or("a quote in it has no end")?;
        for word in &words {
            let (name, value) = word
                .split_once('=')
                .filter(|(name, value)| !name.is_empty() && !value.is_empty())
                .ok_or_else(|| {
                    format!("`{word}` is no CLAIM=VALUE: write a rule like `groups=platform scopes=admin`")
                })?;
            let is_first = match name {
                SCOPES => {
                    let all: Result<Vec<Scope>, String> = value.split(',').map(str::parse).collect();
                    scopes.replace(all?).is_none()
                }
                TENANT => tenant.replace(value.to_owned()).is_none(),
                _ => {
                    let is_whole =
                        value.trim_matches('*').len() + 1 >= value.len() && !value.trim_matches('*').contains('*');
                    if !is_whole {
                        return Err(format!("`{value}`: one `*` may stand at the beginning or at the end"));
                    }
                    conditions.push(Condition {
                        claim: name.to_owned(),
                        pattern: value.to_owned(),
                    });
                    true
                }
            };
            if !is_first {
                return Err(format!("`{name}` stands in it twice"));
            }
        }
        if conditions.is_empty() {
            return Err(
                "it names no claim, so everybody whom the provider knows would be let in; for that write `sub=*`"
                    .to_owned(),
            );
        }
        let mut scopes = scopes.ok_or("it lacks scopes=…: admin, project:read, project:write, claim")?;
        scopes.sort_by_key(|scope| scope.as_str());
        scopes.dedup();
        Ok(Self {
            conditions,
            scopes,
            tenant: tenant.unwrap_or_else(|| FIRST_TENANT.to_owned()),
        })
    }
}

impl fmt::Display for SignInRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Condition { claim, pattern } in &self.conditions {
            let word = format!("{claim}={pattern}");
            if word.contains([' ', '\t', '\'', '"', '\\']) {
                write!(f, "{} ", shlex::try_quote(&word).unwrap_or_default())?;
            } else {
                write!(f, "{word} ")?;
            }
        }
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.as_str()).collect();
        write!(f, "{SCOPES}={} {TENANT}={}", scopes.join(","), self.tenant)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fits(rule: &str, claims: &Value) -> bool {
        rule.parse::<SignInRule>().unwrap().fits(claims)
    }

    #[test]
    fn rule_fits_who_has_all_its_claims() {
        let ada = json!({
            "sub": "1", "email": "ada@example.com", "email_verified": true, "groups": ["platform", "ops", "Platform Team"],
            "realm_access": { "roles": ["dev"] }, "level": 3,
        });
        for (rule, expected) in [
            ("groups=platform scopes=admin", true),
            ("groups=platform email=*@example.com scopes=admin", true),
            ("groups=platform email=*@evil.example scopes=admin", false),
            ("groups=plat scopes=admin", false),
            ("groups=plat* scopes=admin", true),
            ("realm_access.roles=dev scopes=claim", true),
            ("realm_access.roles=admin scopes=claim", false),
            ("level=3 scopes=claim", true),
            ("sub=* scopes=claim", true),
            ("'groups=Platform Team' scopes=claim", true),
            ("groups=\"Platform Team\" scopes=claim", true),
            ("nothing=* scopes=claim", false),
            ("realm_access=* scopes=claim", false),
        ] {
            assert_eq!(fits(rule, &ada), expected, "{rule}");
        }
    }

    #[test]
    fn address_that_the_provider_has_not_checked_lets_nobody_in() {
        let rule = "email=*@example.com scopes=admin";
        for claims in [
            json!({ "email": "ada@example.com" }),
            json!({ "email": "ada@example.com", "email_verified": false }),
            json!({ "email": "ada@example.com", "email_verified": "true" }),
        ] {
            assert!(!fits(rule, &claims), "{claims}");
        }
    }

    #[test]
    fn faulty_rule_says_what_is_wrong() {
        for (rule, expected) in [
            ("", "names no claim"),
            ("scopes=admin", "names no claim"),
            ("groups=a", "lacks scopes"),
            ("groups='a scopes=claim", "a quote in it has no end"),
            ("groups=a scopes=root", "`root` is no scope"),
            ("groups scopes=admin", "`groups` is no CLAIM=VALUE"),
            ("groups= scopes=admin", "`groups=` is no CLAIM=VALUE"),
            ("groups=a scopes=claim scopes=admin", "`scopes` stands in it twice"),
            ("email=*a* scopes=claim", "one `*`"),
            ("email=a*b scopes=claim", "one `*`"),
        ] {
            let error = rule.parse::<SignInRule>().unwrap_err();
            assert!(error.contains(expected), "{rule}: {error}");
        }
        let rule: SignInRule = "groups=a scopes=claim,project:read,claim".parse().unwrap();
        assert_eq!(rule.to_string(), "groups=a scopes=claim,project:read tenant=default");
    }
}
