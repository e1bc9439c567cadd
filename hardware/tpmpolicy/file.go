package tpmpolicy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// FileVersion is the only version of policy.json so far.
const FileVersion = 1

// MaxFile caps policy.json, in bytes.
const MaxFile = 16 << 10

// maxSignature is an ECDSA P-256 signature in ASN.1, in bytes.
const maxSignature = 72

// File is policy.json of a boot partition: at most one branch per platform. It is
// public and needs no protection of its own; the chip checks the signatures.
type File struct {
	Version  int
	Sequence uint64
	Branches []Signed
}

type fileJSON struct {
	Version  int          `json:"version"`
	Sequence uint64       `json:"sequence"`
	Branches []branchJSON `json:"branches"`
}

type branchJSON struct {
	Platform  Platform          `json:"platform"`
	Sequence  uint64            `json:"sequence"`
	NVIndex   uint32            `json:"nv_index"`
	PCRs      map[string]string `json:"pcrs"`      // register: hex, SHA-256 bank
	Signature []byte            `json:"signature"` // base64
}

// Parse reads policy.json strictly. What it returns is well formed; whose
// signatures these are is for Signed.Verify.
func Parse(b []byte) (*File, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("policy: %d bytes are more than %d", len(b), MaxFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var j fileJSON
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("policy: something follows the object")
	}
	f := &File{Version: j.Version, Sequence: j.Sequence}
	for _, bj := range j.Branches {
		s := Signed{Branch: Branch{Platform: bj.Platform, Sequence: bj.Sequence, NVIndex: bj.NVIndex, PCRs: make(map[int][32]byte, len(bj.PCRs))}, Signature: bj.Signature}
		for k, v := range bj.PCRs {
			n, err := strconv.Atoi(k)
			if err != nil || strconv.Itoa(n) != k {
				return nil, fmt.Errorf("policy: %q is not a register", k)
			}
			raw, err := hex.DecodeString(v)
			if err != nil || len(raw) != 32 {
				return nil, fmt.Errorf("policy: register %d is not a SHA-256 digest in hex", n)
			}
			s.PCRs[n] = [32]byte(raw)
		}
		f.Branches = append(f.Branches, s)
	}
	return f, f.check()
}

// Encode returns the JSON of a valid file; the same file gives the same bytes.
func (f *File) Encode() ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	j := fileJSON{Version: f.Version, Sequence: f.Sequence}
	for _, s := range f.Branches {
		bj := branchJSON{Platform: s.Platform, Sequence: s.Sequence, NVIndex: s.NVIndex, PCRs: make(map[string]string, len(s.PCRs)), Signature: s.Signature}
		for i, v := range s.PCRs {
			bj.PCRs[strconv.Itoa(i)] = hex.EncodeToString(v[:])
		}
		j.Branches = append(j.Branches, bj)
	}
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return nil, err
	}
	if b = append(b, '\n'); len(b) > MaxFile {
		return nil, fmt.Errorf("policy: %d bytes are more than %d", len(b), MaxFile)
	}
	return b, nil
}

// Branch returns the branch of a platform, nil where there is none.
func (f *File) Branch(p Platform) *Signed {
	for i := range f.Branches {
		if f.Branches[i].Platform == p {
			return &f.Branches[i]
		}
	}
	return nil
}

func (f *File) check() error {
	if f.Version != FileVersion {
		return fmt.Errorf("policy: version %d is not %d: made by a newer release?", f.Version, FileVersion)
	}
	if len(f.Branches) == 0 {
		return fmt.Errorf("policy: no branch")
	}
	seen := map[Platform]bool{}
	for i := range f.Branches {
		s := &f.Branches[i]
		if err := s.check(); err != nil {
			return err
		}
		if seen[s.Platform] {
			return fmt.Errorf("policy: two branches for platform %s", s.Platform)
		}
		seen[s.Platform] = true
		if s.Sequence != f.Sequence {
			return fmt.Errorf("policy: branch %s has sequence %d, the file %d", s.Platform, s.Sequence, f.Sequence)
		}
		if len(s.Signature) == 0 || len(s.Signature) > maxSignature {
			return fmt.Errorf("policy: branch %s: signature of %d bytes", s.Platform, len(s.Signature))
		}
	}
	return nil
}
