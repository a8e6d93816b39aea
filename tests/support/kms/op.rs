//! The operations the fake key service knows, by their names on the wire. Pure; runs in the test process.

/// An operation of AWS KMS (the `X` of `X-Amz-Target: TrentService.X`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    GenerateDataKey,
    Decrypt,
    Encrypt,
    ReEncrypt,
    DescribeKey,
    ListKeyRotations,
    RotateKeyOnDemand,
    CreateKey,
    CreateAlias,
    UpdateAlias,
    EnableKey,
    DisableKey,
    ScheduleKeyDeletion,
    CancelKeyDeletion,
}

impl Op {
    pub const ALL: [Op; 14] = [
        Op::GenerateDataKey,
        Op::Decrypt,
        Op::Encrypt,
        Op::ReEncrypt,
        Op::DescribeKey,
        Op::ListKeyRotations,
        Op::RotateKeyOnDemand,
        Op::CreateKey,
        Op::CreateAlias,
        Op::UpdateAlias,
        Op::EnableKey,
        Op::DisableKey,
        Op::ScheduleKeyDeletion,
        Op::CancelKeyDeletion,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Op::GenerateDataKey => "GenerateDataKey",
            Op::Decrypt => "Decrypt",
            Op::Encrypt => "Encrypt",
            Op::ReEncrypt => "ReEncrypt",
            Op::DescribeKey => "DescribeKey",
            Op::ListKeyRotations => "ListKeyRotations",
            Op::RotateKeyOnDemand => "RotateKeyOnDemand",
            Op::CreateKey => "CreateKey",
            Op::CreateAlias => "CreateAlias",
            Op::UpdateAlias => "UpdateAlias",
            Op::EnableKey => "EnableKey",
            Op::DisableKey => "DisableKey",
            Op::ScheduleKeyDeletion => "ScheduleKeyDeletion",
            Op::CancelKeyDeletion => "CancelKeyDeletion",
        }
    }

    /// The IAM action a caller lacks when he is refused. A refused ReEncrypt names its first half.
    pub fn action(self) -> String {
        match self {
            Op::ReEncrypt => "kms:ReEncryptFrom".into(),
            op => format!("kms:{}", op.name()),
        }
    }

    pub(super) fn from_target(target: &str) -> Option<Self> {
        let name = target.strip_prefix("TrentService.")?;
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// Works with a key's material, and so asks for an enabled key.
    pub(super) fn is_cryptographic(self) -> bool {
        matches!(self, Op::GenerateDataKey | Op::Decrypt | Op::Encrypt | Op::ReEncrypt)
    }

    /// Takes a wrapped key.
    pub(super) fn takes_blob(self) -> bool {
        matches!(self, Op::Decrypt | Op::ReEncrypt)
    }

    /// Answers with key bytes.
    pub(super) fn returns_plaintext(self) -> bool {
        matches!(self, Op::GenerateDataKey | Op::Decrypt)
    }
}
