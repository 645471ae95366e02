//! The hub's key for secrets: their values lie in the store encrypted under it, and are opened only to be encrypted to a
//! node. The key is a file beside the store. It keeps values out of the database, its backups and whatever copies those;
//! whoever reads the whole state folder reads both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cnova_hub_core::secrets::{SealOrder, Sealed};
use cnova_shared::ids::Name;
use cnova_shared::secret::{self, Address, BoxKey, BoxPublicKey, IV_BYTES, KEY_BYTES};
use cnova_shared::wire::v1::SealedSecret;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

/// The file's name in the state folder.
pub const KEY_FILE: &str = "secrets.key";
/// Draws of a private key; each fails once in 2^32.
const DRAWS: usize = 4;

/// Why the key cannot be used. None of these say anything about a value.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file.
    #[error("cannot {action} the hub's key for secrets {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is not there, and was.
    #[error("the hub's key for secrets {path} is missing: put it back from where it is kept, or set the secrets again")]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error(
        "others may read the hub's key for secrets {path} (mode {mode:o}): chmod 600 {path}, and consider it known"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is something else.
    #[error("{path} is not a key: it has {len} bytes instead of {KEY_BYTES}")]
    NotAKey {
        /// Which file.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// The system gave no randomness.
    #[error("the system gives no random numbers")]
    Random,
    /// Larger than a secret may be, or no key on the curve.
    #[error(transparent)]
    Seal(#[from] secret::SealError),
    /// The node's key is none.
    #[error("the node's key: {0}")]
    BoxKey(#[from] secret::BadBoxKey),
    /// The value was locked with another key.
    #[error(
        "its value does not open with {path}: the key file is another one; put the right one back, or set it again"
    )]
    OtherKey {
        /// Which file.
        path: PathBuf,
    },
}

/// A value as it goes into the store.
pub struct Locked {
    /// Encrypted.
    pub bytes: Vec<u8>,
    /// The same for the same value.
    pub tag: Vec<u8>,
    /// Whether it can be a variable.
    pub is_text: bool,
}

struct Keys {
    lock: Zeroizing<[u8; KEY_BYTES]>,
    tag: hmac::Key,
}

/// The key, read when it is first needed.
pub struct Vault {
    path: PathBuf,
    keys: Mutex<Option<Keys>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

impl Vault {
    /// That of a state folder. Nothing is read yet.
    #[must_use]
    pub fn in_folder(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(KEY_FILE),
            keys: Mutex::default(),
        }
    }

    /// Encrypts a value for the store. Makes the key where there is none.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn lock(&self, name: &Name, value: &[u8]) -> Result<Locked, VaultError> {
        let mut held = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(match read(&self.path) {
                Err(VaultError::Missing { .. }) => make(&self.path)?,
                read => read?,
            });
        }
        let keys = held.as_ref().ok_or(VaultError::Random)?;
        let bytes = secret::lock(value, &keys.lock, &purpose(name), random()?)?;
        let mut tagged = hmac::Context::with_key(&keys.tag);
        tagged.update(&purpose(name));
        tagged.update(value);
        Ok(Locked {
            bytes,
            tag: tagged.sign().as_ref().to_vec(),
            is_text: std::str::from_utf8(value).is_ok_and(|text| !text.contains('\0')),
        })
    }

    /// Encrypts a value of the store to a node.
    pub fn seal(&self, order: &SealOrder) -> Sealed {
        self.try_seal(order).map_err(|e| e.to_string())
    }

    fn try_seal(&self, order: &SealOrder) -> Result<SealedSecret, VaultError> {
        let key = &order.key;
        let to = BoxPublicKey::from_bytes(&order.box_key)?;
        let value = {
            let mut held = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            if held.is_none() {
                *held = Some(read(&self.path)?);
            }
            let keys = held.as_ref().ok_or(VaultError::Random)?;
            let path = || self.path.clone();
            secret::unlock(&order.locked, &keys.lock, &purpose(&key.name))
                .map_err(|_| VaultError::OtherKey { path: path() })?
        };
        let address = Address {
            node: &key.node,
            name: &key.name,
            version: key.version,
        };
        let blob = secret::seal(&value, &to, address, &ephemeral()?, random()?)?;
        Ok(SealedSecret {
            name: key.name.clone(),
            version: key.version,
            key: to.id(),
            blob: blob.into(),
        })
    }
}

/// What a value is, so that one cannot be put in another's place.
fn purpose(name: &Name) -> Vec<u8> {
    format!("cnova/v1/hub-secret/{name}").into_bytes()
}

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| VaultError::Random)?;
    Ok(bytes)
}

fn ephemeral() -> Result<BoxKey, VaultError> {
    let draw = || {
        random()
            .map(Zeroizing::new)
            .ok()
            .and_then(|b| BoxKey::from_bytes(&b).ok())
    };
    std::iter::repeat_with(draw)
        .take(DRAWS)
        .flatten()
        .next()
        .ok_or(VaultError::Random)
}

fn keys_of(key: &[u8; KEY_BYTES]) -> Result<Keys, VaultError> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            KEY_BYTES
        }
    }
    let derive = |what: &[u8]| -> Result<Zeroizing<[u8; KEY_BYTES]>, VaultError> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"cnova/v1/hub-secrets").extract(key);
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        let what = [what];
        let expanded = extracted.expand(&what, Length).map_err(|_| VaultError::Random)?;
        expanded.fill(&mut *bytes).map_err(|_| VaultError::Random)?;
        Ok(bytes)
    };
    Ok(Keys {
        lock: derive(b"lock")?,
        tag: hmac::Key::new(hmac::HMAC_SHA256, &*derive(b"tag")?),
    })
}

fn read(path: &Path) -> Result<Keys, VaultError> {
    let fail = |action| {
        move |source: io::Error| VaultError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(VaultError::Missing { path: path.to_owned() }),
        opened => opened.map_err(fail("open"))?,
    };
    let mode = file.metadata().map_err(fail("look at"))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(VaultError::Open { path, mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * KEY_BYTES));
    file.take(2 * KEY_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(fail("read"))?;
    let key = <&[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| VaultError::NotAKey {
        path: path.to_owned(),
        len: bytes.len(),
    })?;
    keys_of(key)
}

/// Written whole or not at all, and on the disk before anything is locked with it.
fn make(path: &Path) -> Result<Keys, VaultError> {
    let key = Zeroizing::new(random::<KEY_BYTES>()?);
    let draft = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&*key)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|source| VaultError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })?;
    tracing::info!(path = %path.display(), "made the hub's key for secrets; keep a copy apart from the store's backups");
    keys_of(&key)
}

// The length is what AEADs take.
const _: () = assert!(IV_BYTES == 12);

#[cfg(test)]
mod tests {
    use super::*;
    use cnova_hub_core::secrets::SealKey;
    use cnova_shared::ids::NodeId;
    use std::os::unix::fs::PermissionsExt;

    fn order(locked: Vec<u8>, to: &BoxKey) -> SealOrder {
        SealOrder {
            key: SealKey {
                node: NodeId::new("plc-1").unwrap(),
                name: Name::new("db").unwrap(),
                version: 2,
            },
            box_key: to.public().to_bytes(),
            locked,
        }
    }

    #[test]
    fn what_is_locked_is_sealed_to_a_node_also_by_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::new("db").unwrap();
        let vault = Vault::in_folder(dir.path());
        let locked = vault.lock(&name, b"hunter2-value").unwrap();
        assert!(locked.is_text && !locked.bytes.windows(7).any(|w| w == b"hunter2"));
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = BoxKey::from_bytes(&[5; 32]).unwrap();
        let again = Vault::in_folder(dir.path());
        let sealed = again.seal(&order(locked.bytes.clone(), &key)).unwrap();
        let address = Address {
            node: &NodeId::new("plc-1").unwrap(),
            name: &name,
            version: 2,
        };
        assert_eq!(
            secret::open(&sealed.blob, &key, address).unwrap().as_slice(),
            b"hunter2-value"
        );
        let same = again.lock(&name, b"hunter2-value").unwrap();
        assert_eq!(same.tag, locked.tag);
        assert_ne!(same.bytes, locked.bytes);
        assert_ne!(
            again.lock(&Name::new("other").unwrap(), b"hunter2-value").unwrap().tag,
            locked.tag
        );
        assert!(!again.lock(&name, b"a\0b").unwrap().is_text);
    }

    #[test]
    fn a_key_that_is_lost_another_or_open_to_others_is_said_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        let name = Name::new("db").unwrap();
        let locked = Vault::in_folder(dir.path()).lock(&name, b"v").unwrap().bytes;
        let key = BoxKey::from_bytes(&[5; 32]).unwrap();
        let said = || {
            Vault::in_folder(dir.path())
                .seal(&order(locked.clone(), &key))
                .unwrap_err()
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(said().contains("mode 640"), "{}", said());
        assert!(Vault::in_folder(dir.path()).lock(&name, b"v").is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [1; 31]).unwrap();
        assert!(said().contains("31 bytes"), "{}", said());
        fs::write(&path, [1; 32]).unwrap();
        assert!(said().contains("does not open"), "{}", said());
        fs::remove_file(&path).unwrap();
        assert!(said().contains("is missing"), "{}", said());
        assert!(!path.exists());
    }
}
