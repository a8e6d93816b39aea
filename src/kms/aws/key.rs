//! Names of KMS keys: what `hyperion_vault.kms_key_id` may say, and whether the key an answer names is that one. Pure.
//!
//! Used by the check hooks of the settings (any process) and on the tokio threads of the kms worker. Syntax from AWS
//! KMS's developer guide, "Key identifiers (KeyId)".
//!
//! The trap it avoids: trusting the service to have used the key that was asked for. An endpoint that answers with
//! another key (a mistaken proxy, a moved alias in another account) is found out here, before a value is sealed.

use std::fmt;

use hyperion_vault_core::secret::InvalidArgument;

/// The longest KeyId that KMS takes (API reference).
const MAX_LEN: usize = 2048;

/// A key's ARN, as KMS answers and as rows keep it: `arn:aws:kms:eu-central-1:111122223333:key/1234abcd-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyArn {
    partition: String,
    region: String,
    account: String,
    id: String,
}

impl KeyArn {
    /// Total: any other text gives nothing.
    pub fn parse(text: &str) -> Option<Self> {
        match KeyRef::parse(text).ok()? {
            KeyRef::Arn(arn) => Some(arn),
            _ => None,
        }
    }

    /// Where it lives.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether it is a multi-Region key: replicas share id and material and differ in the ARN's region alone.
    pub fn is_multi_region(&self) -> bool {
        self.id.starts_with("mrk-")
    }

    /// Whether both name the same key material: the same key, or replicas of one multi-Region key.
    pub fn same_key(&self, other: &Self) -> bool {
        (self.partition == other.partition && self.account == other.account && self.id == other.id)
            && (self.region == other.region || self.is_multi_region())
    }

    /// The ARN to ask for in `region`: the replica there of a multi-Region key, else the key itself.
    pub fn in_region(&self, region: &str) -> Self {
        let region = if self.is_multi_region() { region } else { &self.region };
        Self { region: region.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, id } = self;
        write!(f, "arn:{partition}:kms:{region}:{account}:key/{id}")
    }
}

/// A key as the settings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// By ARN.
    Arn(KeyArn),
    /// By id alone, in the account of the credentials.
    Id(String),
    /// `alias/name`, in the account of the credentials.
    Alias,
    /// `arn:…:alias/name`.
    AliasArn {
        /// `aws`, `aws-cn`, …
        partition: String,
        /// Where the alias lives.
        region: String,
        /// Whose it is.
        account: String,
    },
}

impl KeyRef {
    /// Parses a key id, key ARN, alias name or alias ARN.
    pub fn parse(text: &str) -> Result<Self, InvalidArgument> {
        let bad = |why: &str| {
            Err(InvalidArgument::new(format!("not a KMS key: {why}")).hint(
                "Give a key id (1234abcd-12ab-34cd-56ef-1234567890ab), a key ARN, an alias (alias/name) or an alias ARN.",
            ))
        };
        if text.len() > MAX_LEN {
            return bad("it is too long");
        }
        if let Some(name) = text.strip_prefix("alias/") {
            return if is_alias(name) {
                Ok(Self::Alias)
            } else {
                bad("the alias name has a character that none may have")
            };
        }
        if !text.starts_with("arn:") {
            return if is_id(text) {
                Ok(Self::Id(text.to_owned()))
            } else {
                bad("an id has letters, digits and hyphens only")
            };
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let &[_, partition, "kms", region, account, resource] = parts.as_slice() else {
            return bad("an ARN of a key is arn:partition:kms:region:account:key/id");
        };
        let named = is_label(partition) && is_label(region);
        if !named || account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad("the ARN's partition, region or account is malformed");
        }
        let (partition, region, account) = (partition.to_owned(), region.to_owned(), account.to_owned());
        match resource.split_once('/') {
            Some(("key", id)) if is_id(id) => {
                Ok(Self::Arn(KeyArn { partition, region, account, id: id.to_owned() }))
            }
            Some(("alias", name)) if is_alias(name) => Ok(Self::AliasArn { partition, region, account }),
            _ => bad("the ARN names neither key/id nor alias/name"),
        }
    }

    /// The region it names, if it names one.
    pub fn region(&self) -> Option<&str> {
        match self {
            Self::Arn(arn) => Some(&arn.region),
            Self::AliasArn { region, .. } => Some(region),
            Self::Id(_) | Self::Alias => None,
        }
    }

    /// Whether an answer that names `arn` can be about this key. An alias says whose key it may be, not which:
    /// aliases are moved on purpose.
    pub fn may_be(&self, arn: &KeyArn) -> bool {
        match self {
            Self::Arn(wanted) => wanted.same_key(arn),
            Self::Id(id) => arn.id == *id,
            Self::Alias => true,
            Self::AliasArn { partition, region, account } => {
                arn.partition == *partition && arn.region == *region && arn.account == *account
            }
        }
    }
}

/// A key id: a UUID, or `mrk-` and 32 hex digits. Not held to that: KMS says what it is.
fn is_id(text: &str) -> bool {
    is_label(text) && text.len() <= 256
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_alias(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 250
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab";

    fn arn(text: &str) -> KeyArn {
        KeyArn::parse(text).unwrap()
    }

    #[test]
    fn reads_all_four_forms() {
        assert_eq!(arn(ARN).to_string(), ARN);
        assert_eq!(arn(ARN).region(), "eu-central-1");
        assert_eq!(KeyRef::parse("1234abcd-12ab").unwrap(), KeyRef::Id("1234abcd-12ab".into()));
        assert_eq!(KeyRef::parse("alias/hyperion/main").unwrap(), KeyRef::Alias);
        let alias = KeyRef::parse("arn:aws-cn:kms:cn-north-1:111122223333:alias/main").unwrap();
        assert_eq!(alias.region(), Some("cn-north-1"));
        // Only a key's ARN is what rows keep.
        assert_eq!(KeyArn::parse("arn:aws:kms:eu-central-1:111122223333:alias/main"), None);
        assert_eq!(KeyArn::parse("1234abcd-12ab"), None);
        assert_eq!(KeyArn::parse("local:0011223344556677"), None);
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "alias/",
            "alias/a b",
            "key/1234",
            "arn:aws:kms:eu-central-1:111122223333:key/",
            "arn:aws:kms:eu-central-1:11112222333:key/1234",
            "arn:aws:kms:eu-central-1:11112222333x:key/1234",
            "arn:aws:kms::111122223333:key/1234",
            "arn:aws:s3:eu-central-1:111122223333:key/1234",
            "arn:aws:kms:eu-central-1:111122223333:grant/1234",
            "arn:aws:kms:eu-central-1:111122223333:key/12\n34",
            "arn:aws:kms:eu-central-1:111122223333",
            "schlüssel",
        ] {
            let error = KeyRef::parse(bad).unwrap_err();
            assert!(error.hint.is_some(), "{bad}");
        }
        assert!(KeyRef::parse(&"a".repeat(MAX_LEN + 1)).is_err());
    }

    #[test]
    fn an_answer_has_to_be_about_the_key() {
        let other_id = ARN.replace("1234abcd", "ffffffff");
        let other_account = ARN.replace("111122223333", "444455556666");
        let other_region = ARN.replace("eu-central-1", "us-east-1");
        let wanted = KeyRef::parse(ARN).unwrap();
        assert!(wanted.may_be(&arn(ARN)));
        for other in [&other_id, &other_account, &other_region] {
            assert!(!wanted.may_be(&arn(other)), "{other}");
        }
        let id = KeyRef::parse("1234abcd-12ab-34cd-56ef-1234567890ab").unwrap();
        assert!(id.may_be(&arn(ARN)) && !id.may_be(&arn(&other_id)));
        let alias = KeyRef::parse("arn:aws:kms:eu-central-1:111122223333:alias/main").unwrap();
        assert!(alias.may_be(&arn(&other_id)));
        assert!(!alias.may_be(&arn(&other_account)) && !alias.may_be(&arn(&other_region)));
    }

    #[test]
    fn replicas_of_a_multi_region_key_are_one_key() {
        let replica = MRK.replace("eu-central-1", "us-east-1");
        assert!(arn(MRK).same_key(&arn(&replica)));
        assert_eq!(arn(MRK).in_region("us-east-1").to_string(), replica);
        assert!(!arn(MRK).same_key(&arn(&replica.replace("1111", "4444"))));
        // A key of one region stays where it is.
        assert_eq!(arn(ARN).in_region("us-east-1").to_string(), ARN);
        assert!(!arn(ARN).same_key(&arn(&ARN.replace("eu-central-1", "us-east-1"))));
    }
}
