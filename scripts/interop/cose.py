"""Reads, verifies and makes our messages with other people's libraries: pycose, cbor2 and cryptography.

On standard input a JSON object {"verify": [...], "sign": [...]}, on standard output one of answers, in the same order.
An entry of "verify" is {"cose": hex, "aad": text, "key": {"alg": "EdDSA" | "ES256", "public": hex}}; its answer says what
holds, and what stands in the message. An entry of "sign" is {"aad", "seed": hex, "kid": hex, "claims": {label: value},
"content_type", "payload": hex}; its answer is the signed message. Nothing of ours is used, only the pages in docs/.
"""

import hashlib
import json
import sys

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pycose.algorithms import EdDSA
from pycose.exceptions import CoseException
from pycose.headers import KID, Algorithm, ContentType
from pycose.keys import EC2Key, OKPKey
from pycose.keys.curves import P256, Ed25519
from pycose.messages import CoseMessage, Sign1Message

CWT_CLAIMS = 15


def key_of(description):
    public = bytes.fromhex(description["public"])
    if description["alg"] == "EdDSA":
        return OKPKey(crv=Ed25519, x=public)
    return EC2Key(crv=P256, x=public[1:33], y=public[33:])


def holds(cose, aad, key):
    """Whether the signature holds; a message that cannot be read has none that does."""
    try:
        message = CoseMessage.decode(cose)
        message.key = key
        message.external_aad = aad.encode()
        return bool(message.verify_signature())
    except (CoseException, ValueError, TypeError, cbor2.CBORDecodeError):
        return False


class Reader:
    """The big-endian structures of a TPM (TPM 2.0 Library, part 2)."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        assert self.at <= len(self.data), "a TPM structure ends early"
        return self.data[self.at - count : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def sized(self):
        return self.take(self.number(2))


def p256_of(public):
    """The point of a TPMT_PUBLIC that signs with ECDSA and SHA-256 on P-256."""
    reader = Reader(public)
    assert reader.number(2) == 0x0023, "not an elliptic curve key"
    reader.take(2 + 4)
    reader.sized()
    symmetric = reader.number(2)
    assert symmetric == 0x0010, "a signing key has no symmetric algorithm"
    assert (reader.number(2), reader.number(2)) == (0x0018, 0x000B), "not ECDSA with SHA-256"
    assert reader.number(2) == 0x0003, "not P-256"
    reader.take(2)
    x, y = reader.sized(), reader.sized()
    return ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
    ).public_key()


def quote_of(evidence):
    """Checks a quote with nothing but what the evidence brings along: who signed it, what it is about, what it binds."""
    tpm = evidence[-70001]
    attest, signature = Reader(tpm[1]), Reader(tpm[2])
    assert (signature.number(2), signature.number(2)) == (0x0018, 0x000B), "not ECDSA with SHA-256"
    r, s = (int.from_bytes(signature.sized(), "big") for _ in "rs")
    # Raises when it does not hold.
    p256_of(tpm[4]).verify(encode_dss_signature(r, s), tpm[1], ec.ECDSA(hashes.SHA256()))
    assert attest.take(4) == b"\xffTCG", "not made by a TPM"
    assert attest.number(2) == 0x8018, "not a quote"
    attest.sized()
    extra = attest.sized()
    attest.take(8 + 4 + 4 + 1 + 8)
    banks = attest.number(4)
    assert banks == 1 and attest.number(2) == 0x000B, "not one bank of SHA-256"
    bitmap = int.from_bytes(attest.take(attest.number(1)), "little")
    registers = [n for n in range(24) if bitmap >> n & 1]
    values = tpm[3]
    assert registers == sorted(values), "other registers are told than quoted"
    told = hashlib.sha256(b"".join(values[n] for n in registers)).digest()
    session = cbor2.dumps(evidence[8][1], canonical=True)
    bound = hashlib.sha256(b"cnova-att-v1" + evidence[10] + session).digest()
    return {
        "registers": registers,
        "values_agree": attest.sized() == told,
        "binds_nonce_and_session": extra == bound,
    }


def plain(value):
    """What JSON can hold."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def verify(entry):
    cose, aad, key = bytes.fromhex(entry["cose"]), entry["aad"], key_of(entry["key"])
    changed = bytearray(cose)
    message = CoseMessage.decode(cose)
    changed[cose.index(message.payload) + len(message.payload) // 2] ^= 1
    header = cbor2.loads(cbor2.loads(cose).value[0])
    payload = cbor2.loads(message.payload)
    return {
        "holds": holds(cose, aad, key),
        "holds_as_another_kind": holds(cose, aad + "x", key),
        "holds_when_changed": holds(bytes(changed), aad, key),
        "claims": plain(header[CWT_CLAIMS]),
        "payload": plain(payload),
        "quote": quote_of(payload) if -70001 in payload else None,
    }


def sign(entry):
    seed = bytes.fromhex(entry["seed"])
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    x = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    header = {
        Algorithm: EdDSA,
        ContentType: entry["content_type"],
        KID: bytes.fromhex(entry["kid"]),
        CWT_CLAIMS: {int(label): value for label, value in entry["claims"].items()},
    }
    message = Sign1Message(phdr=header, payload=bytes.fromhex(entry["payload"]), external_aad=entry["aad"].encode())
    message.key = OKPKey(crv=Ed25519, x=x, d=seed)
    return message.encode().hex()


def main():
    wanted = json.load(sys.stdin)
    answers = {
        "verify": [verify(entry) for entry in wanted["verify"]],
        "sign": [sign(entry) for entry in wanted["sign"]],
    }
    json.dump(answers, sys.stdout)


main()
