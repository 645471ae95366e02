#!/bin/sh
# Makes the vectors beside it: what three emulated TPMs show at enrolment and in a quote, with an RSA-2048, a P-256 and a
# P-384 endorsement key. Needs swtpm, swtpm_setup, tpm2-tools (5.4), openssl (3) and python3; takes a few seconds.
# The vectors in the repository are what one run of it made; the next run makes others that pass the same tests.
#
# Each folder holds
#   ek.crt          certificate of the endorsement key (DER)
#   ek.pub ak.pub dev.pub   TPMT_PUBLIC of endorsement, attestation and device key
#   certify.attest certify.sig   TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify(dev), qualifying data = certify.qualifying
#   quote.attest quote.sig  of TPM2_Quote over PCRs 0-7,11,14 with extraData = SHA-256("cnova-att-v1" || nonce || COSE_Key)
#   pcrs            the values, 32 bytes each, in the order of the registers
#   weak.pub weak-certify.attest weak-certify.sig   an attestation key that is not restricted, and its certification of dev
# and beside them: root.der and issuer.der (the maker), nonce, session.pub (Ed25519), now (seconds since 1970).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
pid=
stop() { [ -z "$pid" ] || kill "$pid" 2>/dev/null || true; pid=; }
trap 'stop; rm -rf "$work"' EXIT

mkdir "$work/ca"
printf 'statedir = %s\nsigningkey = %s/signkey.pem\nissuercert = %s/issuercert.pem\ncertserial = %s/certserial\n' \
    "$work/ca" "$work/ca" "$work/ca" "$work/ca" > "$work/localca.conf"
printf -- '--platform-manufacturer Cloudnova\n--platform-version 1\n--platform-model Vectors\n' > "$work/localca.options"
printf 'create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %s/localca.conf\n' "$work" > "$work/setup.conf"
printf 'create_certs_tool_options = %s/localca.options\nactive_pcr_banks = sha256\n' "$work" >> "$work/setup.conf"

# The nonce, the session key (Ed25519 from a seed of 32 times 7) and what the quote binds.
nonce=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
python3 -c "
import subprocess, hashlib
der = bytes.fromhex('302e020100300506032b657004220420') + bytes([7]) * 32
pub = subprocess.run(['openssl', 'pkey', '-inform', 'DER', '-pubout', '-outform', 'DER'], input=der, capture_output=True, check=True).stdout[-32:]
nonce = bytes.fromhex('$nonce')
cose = bytes.fromhex('a3010120062158' + '20') + pub
open('$here/nonce', 'wb').write(nonce)
open('$here/session.pub', 'wb').write(pub)
open('$work/extra', 'w').write(hashlib.sha256(b'cnova-att-v1' + nonce + cose).hexdigest())
"
tpm() { "$@" > /dev/null; tpm2_flushcontext -t; }
# TPM2B_PUBLIC to TPMT_PUBLIC: without its length.
bare() { tail -c +3 "$1" > "$2"; }

for kind in rsa2048 p256 p384; do
    out=$here/$kind; state=$work/$kind
    mkdir -p "$out" "$state"
    swtpm_setup --tpm2 --tpmstate "dir://$state" --config "$work/setup.conf" --create-ek-cert --ecc --pcr-banks sha256 \
        --not-overwrite --write-ek-cert-files "$state" > /dev/null
    port=$(python3 -c 'import socket
while True:
    a, b = socket.socket(), socket.socket()
    a.bind(("127.0.0.1", 0)); p = a.getsockname()[1]
    try: b.bind(("127.0.0.1", p + 1))
    except OSError: continue
    print(p); break')
    swtpm socket --tpm2 --tpmstate "dir=$state" --server "type=tcp,port=$port,bindaddr=127.0.0.1,disconnect" \
        --ctrl "type=tcp,port=$((port + 1)),bindaddr=127.0.0.1" --flags not-need-init,startup-clear &
    pid=$!
    export TPM2TOOLS_TCTI="swtpm:host=127.0.0.1,port=$port" TSS2_LOG=all+NONE
    for _ in $(seq 100); do tpm2_getrandom 1 > /dev/null 2>&1 && break; sleep 0.05; done
    cd "$state"
    case $kind in
        rsa2048) ek=0x81010001; cp ek-rsa2048.crt "$out/ek.crt" ;;
        p384) ek=0x81010016; cp ek-secp384r1.crt "$out/ek.crt" ;;
        p256)
            tpm tpm2_createek -c 0x81010020 -G ecc
            ek=0x81010020
            tpm2_readpublic -Q -c $ek -f pem -o ek.pem
            # As the TCG profile has it: a critical name of the TPM, no subject. openssl drops what is before the first dot.
            cat > ext.conf <<EXT
[ek]
basicConstraints = critical, CA:FALSE
keyUsage = critical, keyAgreement
extendedKeyUsage = 2.23.133.8.1
subjectAltName = critical, dirName:tpm
[tpm]
x.2.23.133.2.1 = id:00001014
x.2.23.133.2.2 = swtpm
x.2.23.133.2.3 = id:20191023
EXT
            openssl x509 -new -force_pubkey ek.pem -subj / -CA "$work/ca/issuercert.pem" -CAkey "$work/ca/signkey.pem" \
                -set_serial 77 -days 3650 -extfile ext.conf -extensions ek -outform DER -out "$out/ek.crt"
            ;;
    esac
    tpm2_readpublic -Q -c $ek -f tss -o ek.tss && bare ek.tss "$out/ek.pub"
    tpm tpm2_createprimary -C o -G ecc -c srk.ctx
    signing='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign'
    tpm tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -a "$signing|restricted" -c ak.ctx
    tpm2_evictcontrol -Q -C o -c ak.ctx 0x81000011; tpm2_flushcontext -t
    tpm tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -a "$signing|noda" -c weak.ctx
    tpm2_evictcontrol -Q -C o -c weak.ctx 0x81000013; tpm2_flushcontext -t
    tpm tpm2_create -C srk.ctx -G ecc256:ecdsa-sha256:null -a "$signing" -u dev.tss -r dev.priv
    tpm tpm2_load -C srk.ctx -u dev.tss -r dev.priv -c dev.ctx
    tpm2_evictcontrol -Q -C o -c dev.ctx 0x81000012; tpm2_flushcontext -t
    for key in ak:0x81000011 dev:0x81000012 weak:0x81000013; do
        tpm2_readpublic -Q -c "${key#*:}" -f tss -o key.tss && bare key.tss "$out/${key%:*}.pub"
    done
    certify() { python3 "$here/certify.py" "$port" "$@"; }
    printf 'vector-%s' "$kind" > "$out/certify.qualifying"
    certify 81000012 81000011 "$out/certify.qualifying" "$out/certify.attest" "$out/certify.sig"
    certify 81000012 81000013 "$out/certify.qualifying" "$out/weak-certify.attest" "$out/weak-certify.sig"
    for pcr in 0 2 4 7 11; do
        tpm2_pcrextend "$pcr:sha256=$(printf 'boot %s' "$pcr" | sha256sum | cut -d ' ' -f 1)"
    done
    tpm2_quote -Q -c 0x81000011 -l sha256:0,1,2,3,4,5,6,7,11,14 -q "$(cat "$work/extra")" -m "$out/quote.attest" \
        -s "$out/quote.sig" -o pcrs.bin
    tpm2_pcrread -Q sha256:0,1,2,3,4,5,6,7 -o first; tpm2_pcrread -Q sha256:11,14 -o second
    cat first second > "$out/pcrs"
    stop
done
openssl x509 -in "$work/ca/swtpm-localca-rootca-cert.pem" -outform DER -out "$here/root.der"
openssl x509 -in "$work/ca/issuercert.pem" -outform DER -out "$here/issuer.der"
# A day in the time of all certificates.
echo $(($(date +%s) + 86400)) > "$here/now"
chmod -R u=rwX,go=rX "$here"
