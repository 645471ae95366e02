//! The maker's authority, and which certificates a TPM leaves the factory with.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tss_esapi::Context;
use tss_esapi::abstraction::nv::NvOpenOptions;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{NvPublicBuilder, Public};

use super::{must, run, write};
use crate::tpm::{EkKind, ek_template};

/// What swtpm_setup tells swtpm_localca of the TPM; both must be there for a certificate by the profile.
const TPM_FACTS: [&str; 12] = [
    "--tpm-spec-family",
    "2.0",
    "--tpm-spec-level",
    "0",
    "--tpm-spec-revision",
    "164",
    "--tpm-manufacturer",
    "id:00001014",
    "--tpm-model",
    "swtpm",
    "--tpm-version",
    "id:20191023",
];

/// Writes key, certificate and the configuration of swtpm_setup and swtpm_localca; returns the certificate, DER.
pub(super) fn write_authority(folder: &Path) -> Vec<u8> {
    let key = must(KeyPair::generate(), "the maker's key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "cnova test TPM maker");
    let certificate = must(params.self_signed(&key), "the maker's certificate");
    let path = |name: &str| folder.join(name);
    write(&path("signkey.pem"), &key.serialize_pem());
    write(&path("issuercert.pem"), &certificate.pem());
    write(
        &path("options"),
        "--platform-manufacturer Cloudnova\n--platform-version 1\n--platform-model test\n",
    );
    write(
        &path("localca.conf"),
        &format!(
            "statedir = {f}\nsigningkey = {f}/signkey.pem\nissuercert = {f}/issuercert.pem\ncertserial = {f}/certserial\n",
            f = folder.display()
        ),
    );
    write(
        &path("setup.conf"),
        &format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {f}/localca.conf\n\
             create_certs_tool_options = {f}/options\nactive_pcr_banks = sha256\n",
            f = folder.display()
        ),
    );
    certificate.der().to_vec()
}

/// Leaves only the certificate of `kind` in the TPM, making it where swtpm_setup does not.
pub(super) fn arrange(context: &mut Context, maker: &Path, kind: Option<EkKind>) {
    context.set_sessions((Some(AuthSession::Password), None, None));
    for made in [EkKind::P384, EkKind::Rsa2048] {
        if kind != Some(made) {
            undefine(context, made.certificate_index());
        }
    }
    if let Some(kind @ (EkKind::P256 | EkKind::P256High | EkKind::Rsa2048High)) = kind {
        let certificate = certify(context, maker, kind);
        define(context, kind.certificate_index(), &certificate);
    }
}

fn undefine(context: &mut Context, index: u32) {
    let handle = TpmHandle::NvIndex(must(NvIndexTpmHandle::new(index), "an index"));
    let object = context.execute_without_session(|ctx| ctx.tr_from_tpm_public(handle));
    let index = NvIndexHandle::from(must(object, "the index of a certificate"));
    must(
        context.nv_undefine_space(Provision::Platform, index),
        "TPM2_NV_UndefineSpace",
    );
}

/// Writes bytes to a new NV index, as the maker of a TPM does.
pub(super) fn define(context: &mut Context, index: u32, bytes: &[u8]) {
    let attributes = NvIndexAttributesBuilder::new()
        .with_pp_write(true)
        .with_pp_read(true)
        .with_owner_read(true)
        .with_auth_read(true)
        .with_no_da(true)
        .with_platform_create(true)
        .build();
    let public = NvPublicBuilder::new()
        .with_nv_index(must(NvIndexTpmHandle::new(index), "an index"))
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(must(attributes, "attributes"))
        .with_data_area_size(bytes.len())
        .build();
    let options = NvOpenOptions::NewIndex {
        nv_public: must(public, "a public area"),
        auth_handle: NvAuth::Platform,
    };
    let mut writer = must(options.open(context), "TPM2_NV_DefineSpace");
    must(writer.write_all(bytes), "TPM2_NV_Write");
}

fn certify(context: &mut Context, maker: &Path, kind: EkKind) -> Vec<u8> {
    let template = must(ek_template(kind), "a template");
    let made = context.create_primary(Hierarchy::Endorsement, template, None, None, None, None);
    let made = must(made, "TPM2_CreatePrimary");
    must(context.flush_context(made.key_handle.into()), "TPM2_FlushContext");
    let ek = match &made.out_public {
        Public::Ecc { unique, .. } => {
            let (x, y) = (hex(unique.x().value()), hex(unique.y().value()));
            format!("x={x},y={y},id=secp256r1")
        }
        Public::Rsa { unique, .. } => hex(unique.value()),
        _ => panic!("an endorsement key of another kind"),
    };
    let folder = must(tempfile::tempdir(), "a folder");
    let mut localca = Command::new("swtpm_localca");
    localca.args(["--type", "ek", "--ek", &ek, "--tpm2"]).args(TPM_FACTS);
    localca.arg("--dir").arg(folder.path());
    localca.arg("--configfile").arg(maker.join("localca.conf"));
    localca.arg("--optsfile").arg(maker.join("options"));
    run(&mut localca);
    must(fs::read(folder.path().join("ek.cert")), "the certificate")
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
