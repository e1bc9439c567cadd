package setup

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

var day = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func TestSoftHSMTokenIsMadeOnceAndFoundAgain(t *testing.T) {
	dir := t.TempDir()
	a, err := PrepareSoftHSM(t.Context(), dir, day, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatalf("%v (needs the package softhsm2)", err)
	}
	for _, c := range TestSoftHSM(t.Context(), a) {
		if !c.OK {
			t.Error(c)
		}
	}
	said := 0
	b, err := PrepareSoftHSM(t.Context(), dir, day, func(string) { said++ })
	if err != nil || *a != *b || said != 0 {
		t.Errorf("a second time: %+v, %v, %d steps", b, err, said)
	}
	tokens, err := os.ReadDir(filepath.Join(dir, softTokens))
	if err != nil || len(tokens) != 1 {
		t.Errorf("%d tokens, %v", len(tokens), err)
	}
	for _, f := range []string{softPIN, softSOPIN, softConf} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, softTokens)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, softTokens), 0o700); err != nil {
		t.Fatal(err)
	}
	if c := TestSoftHSM(t.Context(), a); c[0].OK {
		t.Error("a token that is gone passes the test")
	}
}
