package approval

import (
	"bytes"
	"testing"
	"time"
)

func FuzzParse(f *testing.F) {
	full, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	small := sample()
	small.Profile = Profile{User: "0:0", Network: NetworkNone, Limits: Limits{MinMemory, 1, 10}}
	plain, _ := small.Encode()
	r, _ := Revocation{RevocationSchema, "", digest("a"), "why", time.Unix(1<<30, 0)}.Encode()
	for _, seed := range [][]byte{full, plain, r, nil, []byte("{}"), bytes.Replace(full, []byte(`"name"`), []byte(`"Name"`), 1)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := Parse(data); err == nil {
			again, err := a.Encode()
			if err != nil || !bytes.Equal(again, data) || a.Validate() != nil {
				t.Fatalf("%q is read and is not what would be written: %v", data, err)
			}
			if err := a.Profile.Covers(&a.Profile); err != nil {
				t.Fatalf("a profile that does not cover itself: %v", err)
			}
		} else if Reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
		if r, err := ParseRevocation(data); err == nil {
			if again, err := r.Encode(); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q: %v", data, err)
			}
		} else if Reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	signers, keys := someKeys(f, 2)
	approvers := Approvers{2, 1, keys}
	good, err := sample().Sign(signers...)
	if err != nil {
		f.Fatal(err)
	}
	short, _ := sample().Sign(signers[0])
	r, _ := Revocation{RevocationSchema, digest("a"), "", "why", time.Unix(1<<30, 0)}.Sign(signers[0])
	for _, seed := range [][]byte{good, short, r, nil, []byte(`{"payloadType":"","payload":"","signatures":[]}`)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := approvers.Open(data); err == nil {
			if !bytes.Equal(data, good) {
				t.Fatalf("accepted, and nobody signed it: %q", data)
			}
		} else if Reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
		if p, err := Peek(data); err == nil && (p.Approval == nil) == (p.Revocation == nil) {
			t.Fatal("an envelope of both kinds, or none")
		}
	})
}

func FuzzParseApprovers(f *testing.F) {
	_, keys := someKeys(f, 2)
	good, _ := Approvers{2, 1, keys}.Encode()
	f.Add(good)
	f.Add([]byte(`{"threshold":1,"revoke_threshold":1,"keys":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseApprovers(data)
		if err != nil {
			if Reason(err) != ReasonApprovers {
				t.Fatal(err)
			}
			return
		}
		if _, err := a.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}
