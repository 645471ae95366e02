"""TPM2_Certify with qualifying data, which tpm2_certify 5.4 does not offer: PORT OBJECT SIGNER QUALIFYING ATTEST SIGNATURE."""

import socket
import struct
import sys

port, certified, signer, qualifying, attest, signature = sys.argv[1:]
TPM2_CC_CERTIFY = 0x148
PASSWORD = struct.pack(">IHBH", 0x40000009, 0, 1, 0)

with open(qualifying, "rb") as f:
    data = f.read()
body = struct.pack(">II", int(certified, 16), int(signer, 16))
body += struct.pack(">I", 2 * len(PASSWORD)) + 2 * PASSWORD
body += struct.pack(">H", len(data)) + data + struct.pack(">H", 0x0010)
command = struct.pack(">HII", 0x8002, 10 + len(body), TPM2_CC_CERTIFY) + body

TPM_RC_RETRY = 0x922


def ask():
    with socket.create_connection(("127.0.0.1", int(port))) as tpm:
        tpm.sendall(command)
        answer = b""
        while len(answer) < 10 or len(answer) < struct.unpack(">I", answer[2:6])[0]:
            more = tpm.recv(4096)
            if not more:
                sys.exit("the TPM hung up")
            answer += more
        return answer


for _ in range(10):
    answer = ask()
    code = struct.unpack(">I", answer[6:10])[0]
    # libtss2 repeats a command that the TPM was not ready for; so must we.
    if code != TPM_RC_RETRY:
        break
if code:
    sys.exit(f"TPM2_Certify: {code:#x}")
parameters = answer[14 : 14 + struct.unpack(">I", answer[10:14])[0]]
length = struct.unpack(">H", parameters[:2])[0]
with open(attest, "wb") as f:
    f.write(parameters[2 : 2 + length])
with open(signature, "wb") as f:
    f.write(parameters[2 + length :])
