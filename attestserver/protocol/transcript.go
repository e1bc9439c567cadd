package protocol

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
)

// Labels keep a signature made for one purpose from being taken for another.
const (
	claimLabel     = "portcullis-claim-v1"
	challengeLabel = "portcullis-challenge-v1"
	evidenceLabel  = "portcullis-evidence-v1"
	chainLabel     = "portcullis-chain-v1"
)

// transcript is a canonical encoding: each field with its length (u64) before
// it, so that no two lists of fields have the same bytes.
type transcript []byte

func (t *transcript) bytes(fields ...[]byte) {
	for _, f := range fields {
		*t = binary.BigEndian.AppendUint64(*t, uint64(len(f)))
		*t = append(*t, f...)
	}
}

func (t *transcript) text(s string) {
	*t = append(binary.BigEndian.AppendUint64(*t, uint64(len(s))), s...)
}

func (t *transcript) number(n uint64) {
	*t = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(*t, 8), n)
}

// Room that transcripts take in bytes, so that few have to grow.
const (
	roomHead = 512 // all but ops or results
	roomEach = 256 // one of them, without what it carries
)

// ClaimTranscript is what the agent signs to claim a session: all that it says,
// the gateway it says it to, and the connection it says it on.
func ClaimTranscript(c *Claim, gateway ed25519.PublicKey, gatewayNonce [32]byte, binding Binding) []byte {
	var t transcript
	t.text(claimLabel)
	t.text(c.Session)
	t.bytes(c.ManifestDigest, c.RootHash)
	t.number(uint64(c.UptimeMs))
	t.bytes(gatewayNonce[:], c.Nonce, c.PublicKey, gateway, binding[:])
	t.number(c.Epoch)
	return t
}

// ChallengeDigest names one challenge with everything in it.
func ChallengeDigest(c *Challenge) [32]byte {
	t := make(transcript, 0, roomHead+roomEach*len(c.Ops))
	t.text(challengeLabel)
	t.bytes(c.Id)
	t.text(c.Session)
	t.number(c.Sequence)
	t.bytes(c.Nonce)
	t.number(uint64(c.DeadlineMs))
	t.bytes(c.Previous)
	t.number(uint64(len(c.Ops)))
	for _, op := range c.Ops {
		t.text(op.Name)
		t.bytes(op.Params)
		t.number(flag(op.Enrol))
	}
	return sha256.Sum256(t)
}

// EvidenceTranscript is what the agent signs: the challenge, the connection and
// every result. data[i] is the data of result i, wherever it travelled.
func EvidenceTranscript(challenge [32]byte, binding Binding, e *Evidence, data [][]byte) []byte {
	t := make(transcript, 0, roomHead+roomEach*len(e.Results))
	t.text(evidenceLabel)
	t.bytes(challenge[:], binding[:], e.Id)
	t.number(e.Sequence)
	t.number(uint64(e.StartedMs))
	t.number(uint64(e.FinishedMs))
	t.bytes(e.Previous)
	t.number(uint64(len(e.Results)))
	for i, r := range e.Results {
		sum := sha256.Sum256(data[i])
		t.text(r.Name)
		t.bytes(r.Digest, sum[:])
		t.number(r.DataSize)
		t.number(uint64(r.StartedUs))
		t.number(uint64(r.FinishedUs))
		t.text(r.Error)
	}
	return t
}

// ChainStart is the head of the evidence chain of a fresh connection.
func ChainStart(binding Binding) [32]byte {
	var t transcript
	t.text(chainLabel)
	t.bytes(binding[:])
	return sha256.Sum256(t)
}

// ChainContinue is the head with which a connection that follows another in the
// same session begins: the evidence of both is one chain.
func ChainContinue(head [32]byte, binding Binding) [32]byte {
	var t transcript
	t.text(chainLabel)
	t.bytes(head[:], binding[:])
	return sha256.Sum256(t)
}

// ChainNext is the head after evidence with the given transcript.
func ChainNext(head [32]byte, evidence []byte) [32]byte {
	sum := sha256.Sum256(evidence)
	var t transcript
	t.text(chainLabel)
	t.bytes(head[:], sum[:])
	return sha256.Sum256(t)
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
