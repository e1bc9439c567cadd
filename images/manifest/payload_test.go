package manifest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"portcullis/internal/strictjson"
)

// sample is a valid manifest of artefacts of one chunk each.
func sample() Manifest {
	d := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	m := Manifest{
		Schema: Schema, Image: "hpc", Profile: ProfileLab, LabChannel: true, Version: 3,
		NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		Verity: Verity{RootHash: d("r"), Salt: d("s"), DataBlocks: 2, HashStart: 2},
		UKI: UKIInfo{StubVersion: "257", KernelVersion: "6.12", Sections: []Section{{Name: ".linux", Size: 1, SHA256: d("l")}},
			Authenticode: d("a"), LinuxAuthenticode: d("b")},
		PCR:   map[string]string{"9": d("9"), "11": d("11"), "12": d("12")},
		Agent: d("agent"), Mask: KernelTextMask{Sites: 1, Bytes: 5, Total: 10, SHA256: d("m")}, Packages: []string{"a1=1", "b2=2"},
	}
	m.Cmdline = cmdline(m.Verity)
	for _, name := range []string{UKI, Kernel, Initrd, Root} {
		a, _ := Describe(name, bytes.NewReader(make([]byte, 3*4096)))
		m.Artefacts = append(m.Artefacts, a)
	}
	return m
}

func cmdline(v Verity) string {
	return fmt.Sprintf("quiet roothash=%s portcullis.verity=%s,%d,%d", v.RootHash, v.Salt, v.DataBlocks, v.HashStart)
}

// signRaw signs any payload, also one that Sign would refuse.
func signRaw(t testing.TB, payload []byte) ([]byte, Trust) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	e := envelope{PayloadType: PayloadType, Payload: payload, Signatures: []signature{
		{KeyID: KeyID(key.Public().(ed25519.PublicKey)), Sig: ed25519.Sign(key, pae(PayloadType, payload))}}}
	data, err := strictjson.Compact(e)
	if err != nil {
		t.Fatal(err)
	}
	return data, Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}}
}

// The test vector of the DSSE specification (protocol.md, "Test Vectors").
func TestPAE(t *testing.T) {
	got := string(pae("http://example.com/HelloWorld", []byte("hello world")))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

// A signed manifest that two readers could understand differently is refused.
func TestOpenRefusesOtherEncodingsOfASignedManifest(t *testing.T) {
	m := sample()
	payload, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		if !bytes.Contains(payload, []byte(old)) {
			t.Fatalf("%q is not in the payload", old)
		}
		return bytes.Replace(payload, []byte(old), []byte(new), 1)
	}
	for name, p := range map[string][]byte{
		"unknown field":         replace(`"version":3`, `"version":3,"extra":1`),
		"doubled field":         replace(`"version":3`, `"version":3,"version":3`),
		"field in other case":   replace(`"version":3`, `"Version":3`),
		"order of fields":       replace(`"profile":"lab","lab_channel":true`, `"lab_channel":true,"profile":"lab"`),
		"escape":                replace(`"hpc"`, `"\u0068pc"`),
		"white space":           replace(`"version":3`, `"version": 3`),
		"another number":        replace(`"version":3`, `"version":3.0`),
		"time zone":             replace(`2026-01-01T00:00:00Z`, `2026-01-01T00:00:00+00:00`),
		"data behind the end":   append(bytes.Clone(payload), []byte("{}")...),
		"null list":             replace(`"packages":["a1=1","b2=2"]`, `"packages":null`),
		"cut off":               payload[:len(payload)-1],
		"invalid UTF-8":         replace(`"hpc"`, "\"hp\xff\""),
		"negative version":      replace(`"version":3`, `"version":-3`),
		"doubled PCR":           replace(`"pcr":{"11"`, `"pcr":{"9":"x","11"`),
		"number over 64 bits":   replace(`"version":3`, `"version":18446744073709551616`),
		"empty":                 {},
		"another type of value": []byte(`[]`),
	} {
		data, trust := signRaw(t, p)
		_, err := Open(data, trust, m.NotBefore, 0)
		var e *Error
		if !errors.As(err, &e) || e.Reason != ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	good := sample()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	upper := func(s string) string { return strings.ToUpper(s) }
	for _, row := range []struct {
		name   string
		change func(*Manifest)
		want   string
	}{
		{"command channel in a generic image", func(m *Manifest) { m.Profile = ProfileGeneric }, ReasonMalformed},
		{"unknown profile", func(m *Manifest) { m.Profile = "x" }, ReasonMalformed},
		{"schema", func(m *Manifest) { m.Schema = "portcullis/manifest/v2" }, ReasonMalformed},
		{"image name with a path", func(m *Manifest) { m.Image = "../x" }, ReasonMalformed},
		{"version 0", func(m *Manifest) { m.Version = 0 }, ReasonMalformed},
		{"ends before it begins", func(m *Manifest) { m.NotAfter = m.NotBefore }, ReasonMalformed},
		{"before the year 2000", func(m *Manifest) { m.NotBefore = time.Time{} }, ReasonMalformed},
		{"artefact with a path as its name", func(m *Manifest) { m.Artefacts[0].Name = "../hpc.efi" }, ReasonMalformed},
		{"artefact missing", func(m *Manifest) { m.Artefacts = m.Artefacts[1:] }, ReasonMalformed},
		{"artefact twice", func(m *Manifest) { m.Artefacts[1] = m.Artefacts[0] }, ReasonMalformed},
		{"artefact added that is there already", func(m *Manifest) { m.Artefacts = append(m.Artefacts, m.Artefacts[0]) }, ReasonMalformed},
		{"artefact of no bytes", func(m *Manifest) { m.Artefacts[0].Size = 0 }, ReasonMalformed},
		{"artefact of negative size", func(m *Manifest) { m.Artefacts[0].Size = -1; m.Artefacts[0].Chunks = nil }, ReasonMalformed},
		{"artefact over its cap", func(m *Manifest) { m.Artefacts[0].Size = MaxBootArtefact + 1 }, ReasonSize},
		{"chunk missing", func(m *Manifest) { m.Artefacts[0].Chunks = nil }, ReasonMalformed},
		{"chunk too many", func(m *Manifest) { m.Artefacts[0].Chunks = append(m.Artefacts[0].Chunks, m.Artefacts[0].SHA256) }, ReasonMalformed},
		{"chunk in upper case", func(m *Manifest) { m.Artefacts[0].Chunks = []string{upper(m.Artefacts[0].Chunks[0])} }, ReasonMalformed},
		{"digest too short", func(m *Manifest) { m.Artefacts[0].SHA256 = m.Artefacts[0].SHA256[2:] }, ReasonMalformed},
		{"root hash", func(m *Manifest) { m.Verity.RootHash = ""; m.Cmdline = cmdline(m.Verity) }, ReasonMalformed},
		{"salt of half a byte", func(m *Manifest) { m.Verity.Salt += "a"; m.Cmdline = cmdline(m.Verity) }, ReasonMalformed},
		{"tree inside the data", func(m *Manifest) { m.Verity.HashStart = 1; m.Cmdline = cmdline(m.Verity) }, ReasonMalformed},
		{"tree behind the end", func(m *Manifest) { m.Verity.HashStart = 3; m.Cmdline = cmdline(m.Verity) }, ReasonMalformed},
		{"no data", func(m *Manifest) { m.Verity.DataBlocks = 0; m.Cmdline = cmdline(m.Verity) }, ReasonMalformed},
		{"command line names another root hash", func(m *Manifest) { m.Cmdline = strings.Replace(m.Cmdline, "roothash=", "roothash=0", 1) }, ReasonMalformed},
		{"command line names a second root hash", func(m *Manifest) { m.Cmdline += " roothash=" + m.Verity.RootHash }, ReasonMalformed},
		{"command line without verity", func(m *Manifest) { m.Cmdline = "roothash=" + m.Verity.RootHash }, ReasonMalformed},
		{"command line with a line feed", func(m *Manifest) { m.Cmdline += "\n" }, ReasonMalformed},
		{"command line that the kernel would cut", func(m *Manifest) { m.Cmdline += strings.Repeat(" a", 1024) }, ReasonSize},
		{"no section", func(m *Manifest) { m.UKI.Sections = nil }, ReasonMalformed},
		{"section twice", func(m *Manifest) { m.UKI.Sections = append(m.UKI.Sections, m.UKI.Sections[0]) }, ReasonMalformed},
		{"section digest", func(m *Manifest) { m.UKI.Sections[0].SHA256 = "" }, ReasonMalformed},
		{"stub version", func(m *Manifest) { m.UKI.StubVersion = "" }, ReasonMalformed},
		{"Authenticode", func(m *Manifest) { m.UKI.Authenticode = "" }, ReasonMalformed},
		{"PCR missing", func(m *Manifest) { delete(m.PCR, "11") }, ReasonMalformed},
		{"PCR too many", func(m *Manifest) { m.PCR["4"] = m.PCR["9"] }, ReasonMalformed},
		{"agent", func(m *Manifest) { m.Agent = "" }, ReasonMalformed},
		{"mask larger than the text", func(m *Manifest) { m.Mask.Bytes = 11 }, ReasonMalformed},
		{"packages out of order", func(m *Manifest) { m.Packages = []string{"b2=1", "a1=1"} }, ReasonMalformed},
		{"package twice", func(m *Manifest) { m.Packages = []string{"b2=1", "b2=1"} }, ReasonMalformed},
		{"package without version", func(m *Manifest) { m.Packages = []string{"b2"} }, ReasonMalformed},
		{"too many packages", func(m *Manifest) { m.Packages = make([]string, maxPackages+1) }, ReasonSize},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := sample()
			row.change(&m)
			var e *Error
			if err := m.Validate(); !errors.As(err, &e) || e.Reason != row.want {
				t.Fatalf("%v, want %s", err, row.want)
			}
			payload, err := Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			data, trust := signRaw(t, payload)
			if v, err := Open(data, trust, m.NotBefore, 0); err == nil {
				t.Fatalf("Open accepted it: %+v", v)
			}
			if _, err := Sign(m, ed25519.NewKeyFromSeed(make([]byte, 32))); err == nil {
				t.Fatal("Sign signed it")
			}
		})
	}
}

// Any input is a manifest or a typed refusal; what is accepted encodes to the same bytes again.
func FuzzOpen(f *testing.F) {
	m := sample()
	payload, err := Encode(m)
	if err != nil {
		f.Fatal(err)
	}
	envelope, _ := signRaw(f, payload)
	f.Add(envelope, true)
	f.Add(payload, false)
	f.Add([]byte(`{"schema":"portcullis/manifest/v1","artefacts":[{"name":"hpc.efi","size":-1}]}`), false)
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[{"keyid":"","sig":""}]}`), true)
	f.Add([]byte(strings.Repeat("[", 20000)), false)
	f.Fuzz(func(t *testing.T, data []byte, whole bool) {
		_, trust := signRaw(t, nil)
		if !whole {
			data, _ = signRaw(t, data)
		}
		v, err := Open(data, trust, m.NotBefore, 0)
		var e *Error
		switch {
		case err == nil:
			again, err := Encode(v.Manifest)
			if err != nil || sha256.Sum256(again) != v.Digest {
				t.Fatalf("accepted, but it is not its own encoding: %v", err)
			}
		case !errors.As(err, &e) || e.Reason == "" || e.Detail == "":
			t.Fatalf("no typed reason: %v", err)
		}
	})
}

func FuzzParseTrust(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	good, err := Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{key}, GatewayKey: key}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"threshold":1,"release_keys":[],"gateway_key":""}`))
	f.Add([]byte(`{"threshold":-1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		trust, err := ParseTrust(data)
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Reason != ReasonTrust {
				t.Fatalf("no typed reason: %v", err)
			}
			return
		}
		again, err := trust.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseTrust(again); err != nil || back.Threshold != trust.Threshold {
			t.Fatalf("%v", err)
		}
	})
}
