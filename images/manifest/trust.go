package manifest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"

	"portcullis/internal/strictjson"
)

// maxTrust is the largest trust file in bytes.
const maxTrust = 64 << 10

// Trust says whose images and whose gateway a PC believes. The zero value
// trusts nobody and Open refuses it.
type Trust struct {
	Threshold   int                 // 1 to len(ReleaseKeys) signatures are needed
	ReleaseKeys []ed25519.PublicKey // 1 to 16, distinct
	GatewayKey  ed25519.PublicKey   // of the Pi that may talk to the agent
}

type trustFile struct {
	Threshold   int      `json:"threshold"`
	ReleaseKeys []string `json:"release_keys"`
	GatewayKey  string   `json:"gateway_key"`
}

// Encode returns the trust file of t: one line of JSON, keys in standard base64.
func (t Trust) Encode() ([]byte, error) {
	if err := t.checkRelease(); err != nil {
		return nil, err
	}
	f := trustFile{Threshold: t.Threshold, GatewayKey: base64.StdEncoding.EncodeToString(t.GatewayKey)}
	for _, k := range t.ReleaseKeys {
		f.ReleaseKeys = append(f.ReleaseKeys, base64.StdEncoding.EncodeToString(k))
	}
	if _, err := decodeKey(f.GatewayKey); err != nil {
		return nil, refuse(ReasonTrust, "gateway_key: %v", err)
	}
	data, err := strictjson.Compact(f)
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// ParseTrust reads a trust file. White space is free; everything else is as
// Encode writes it: no unknown or doubled field, nothing behind the end.
// Every refusal is an *Error with ReasonTrust.
func ParseTrust(data []byte) (Trust, error) {
	if len(data) > maxTrust {
		return Trust{}, refuse(ReasonTrust, "the trust file is %d bytes long, at most %d are read", len(data), maxTrust)
	}
	var f trustFile
	if err := strictjson.Decode(data, &f); err != nil {
		return Trust{}, refuse(ReasonTrust, "the trust file is not readable: %v", err)
	}
	var plain bytes.Buffer
	if err := json.Compact(&plain, data); err != nil {
		return Trust{}, refuse(ReasonTrust, "the trust file is not readable: %v", err)
	}
	if again, err := strictjson.Compact(f); err != nil || !bytes.Equal(again, plain.Bytes()) {
		return Trust{}, refuse(ReasonTrust, "a field is there twice, in a different order or spelt differently than Encode writes it")
	}
	t := Trust{Threshold: f.Threshold}
	for i, s := range f.ReleaseKeys {
		k, err := decodeKey(s)
		if err != nil {
			return Trust{}, refuse(ReasonTrust, "release_keys[%d]: %v", i, err)
		}
		t.ReleaseKeys = append(t.ReleaseKeys, k)
	}
	k, err := decodeKey(f.GatewayKey)
	if err != nil {
		return Trust{}, refuse(ReasonTrust, "gateway_key: %v", err)
	}
	t.GatewayKey = k
	if err := t.checkRelease(); err != nil {
		return Trust{}, err
	}
	return t, nil
}

// checkRelease is what Open needs of t; it leaves the gateway key alone.
func (t Trust) checkRelease() error {
	if n := len(t.ReleaseKeys); n == 0 || n > maxSignatures {
		return refuse(ReasonTrust, "release_keys: %d keys, 1 to %d are possible", n, maxSignatures)
	}
	if t.Threshold < 1 || t.Threshold > len(t.ReleaseKeys) {
		return refuse(ReasonTrust, "threshold: %d, 1 to %d are possible with these keys", t.Threshold, len(t.ReleaseKeys))
	}
	seen := map[string]bool{}
	for i, k := range t.ReleaseKeys {
		if _, err := decodeKey(base64.StdEncoding.EncodeToString(k)); err != nil {
			return refuse(ReasonTrust, "release_keys[%d]: %v", i, err)
		}
		// A key that is there twice would be counted twice.
		if seen[string(k)] {
			return refuse(ReasonTrust, "release_keys[%d]: this key is there twice", i)
		}
		seen[string(k)] = true
	}
	return nil
}
