"""Opens an encrypted secret of ours with another library (cryptography), by the RFCs alone: COSE_Encrypt of RFC 9052, ECDH-ES +
HKDF-256 with A256GCM of RFC 9053. On standard input a JSON object {"cose": hex, "private": hex, "node", "name", "version"}, on
standard output {"value": hex}, or {"value": null} if it does not open. Nothing of ours is used, only docs/SECRETS.md.
"""

import json
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def read(data, at):
    """One item of CBOR (RFC 8949) and where the next begins: what a COSE_Encrypt consists of."""
    major, count = data[at] >> 5, data[at] & 31
    at += 1
    if count >= 24:
        size = 1 << (count - 24)
        count, at = int.from_bytes(data[at : at + size], "big"), at + size
    if major == 0:
        return count, at
    if major == 1:
        return -1 - count, at
    if major in (2, 3):
        piece = data[at : at + count]
        return (piece if major == 2 else piece.decode()), at + count
    if major == 4:
        items = []
        for _ in range(count):
            item, at = read(data, at)
            items.append(item)
        return items, at
    if major == 5:
        pairs = {}
        for _ in range(count):
            key, at = read(data, at)
            pairs[key], at = read(data, at)
        return pairs, at
    assert major == 6 and count == 96, "not tagged as COSE_Encrypt"
    return read(data, at)


def head(major, count):
    if count < 24:
        return bytes([major << 5 | count])
    for size, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if count < 1 << 8 * size:
            return bytes([major << 5 | code]) + count.to_bytes(size, "big")
    raise ValueError(count)


def text(value):
    return head(3, len(value.encode())) + value.encode()


def octets(value):
    return head(2, len(value)) + value


def open_secret(asked):
    (protected, unprotected, ciphertext, recipients), _ = read(bytes.fromhex(asked["cose"]), 0)
    assert read(protected, 0)[0] == {1: 3}, "A256GCM"
    ((about, hints, empty),) = recipients
    assert read(about, 0)[0] == {1: -25} and empty == b"", "ECDH-ES + HKDF-256"
    ephemeral = hints[-1]
    assert ephemeral[1] == 2 and ephemeral[-1] == 1, "an EC2 key on P-256"
    x, y = (int.from_bytes(ephemeral[label], "big") for label in (-2, -3))
    theirs = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    own = ec.derive_private_key(int(asked["private"], 16), ec.SECP256R1())
    party = head(4, 3) + b"\xf6" * 3
    context = head(4, 4) + head(0, 3) + party + party + head(4, 2) + head(0, 256) + octets(about)
    key = HKDF(hashes.SHA256(), 32, None, context).derive(own.exchange(ec.ECDH(), theirs))
    external = head(4, 4) + text("cnova/v1/secret") + text(asked["node"]) + text(asked["name"]) + head(0, asked["version"])
    structure = head(4, 3) + text("Encrypt") + octets(protected) + octets(external)
    try:
        return AESGCM(key).decrypt(unprotected[5], ciphertext, structure).hex()
    except InvalidTag:
        return None


json.dump({"value": open_secret(json.load(sys.stdin))}, sys.stdout)
