package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/identity"
	"portcullis/internal/cli"
)

func TestIdentityIsComparedWithWhatWasKept(t *testing.T) {
	r := &identity.Record{Schema: identity.Schema, Booted: &identity.Boot{Volume: "v", VolumePCR: "aa"}, Enrolled: &card.Enrolment{Volume: "v", VolumePCR: "aa"}}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "door.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	stdio := &cli.IO{Out: &out, Err: &out}
	if err := expectIdentity(stdio, r, file, false); err != nil || !strings.Contains(out.String(), "the same") {
		t.Errorf("%s, %v", &out, err)
	}
	out.Reset()
	r.Booted.VolumePCR, r.Booted.ReEnrolled = "bb", true
	var exit *cli.ExitError
	if err := expectIdentity(stdio, r, file, true); !errors.As(err, &exit) || exit.Code != 1 ||
		strings.Join(strings.Fields(out.String()), "") != `{"differences":[{"field":"volume_pcr","kept":"aa","now":"bb"}],"same":false}` {
		t.Errorf("%s, %v", &out, err)
	}
	out.Reset()
	printIdentity(&out, r)
	for _, want := range []string{"volume   v, register 15 bb, NOT the one that first boot wrote down: v, register 15 aa", "RE-ENROLLED"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := expectIdentity(stdio, r, file, false); err == nil || errors.As(err, &exit) {
		t.Errorf("no record: %v", err)
	}
}
