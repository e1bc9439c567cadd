//go:build !appliance

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/hpc"
	"portcullis/internal/cli"
)

// runImage runs "portcullis image …" and returns exit code, output and messages.
func runImage(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{imageCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{In: strings.NewReader(""), Out: &o, Err: &e}, append([]string{"image"}, args...))
	return code, o.String(), e.String()
}

func TestImageKeygenMakesAPairAndKeepsOldKeys(t *testing.T) {
	key := filepath.Join(t.TempDir(), "release.key")
	code, out, errs := runImage(t, "keygen", key, "--json")
	var r map[string]string
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r["public"] != key+".pub" || len(r["id"]) != 32 {
		t.Fatalf("%d %q %q %v", code, out, errs, err)
	}
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("secret key: %v %v", st, err)
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, _ := runImage(t, "keygen", key); code != 1 {
		t.Errorf("a key was made anew: exit %d", code)
	}
	if after, _ := os.ReadFile(key); !bytes.Equal(before, after) {
		t.Error("a key was overwritten")
	}
}

func TestImageKeygenForPi(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "release")
	code, out, errs := runImage(t, "keygen", "--pi", prefix, "--json")
	var r map[string]string
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r["policy"] != prefix+".policy" || r["boot"] != prefix+".boot" {
		t.Fatalf("%d %q %q %v", code, out, errs, err)
	}
	for _, f := range []string{"", ".policy", ".boot"} {
		if st, err := os.Stat(prefix + f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%q: %v %v", f, st, err)
		}
		if _, err := os.Stat(prefix + f + ".pub"); err != nil {
			t.Error(err)
		}
	}
	if code, _, _ := runImage(t, "keygen", "--pi", prefix); code != 1 {
		t.Errorf("keys were made anew: exit %d", code)
	}
	if code, _, errs := runImage(t, "pi", "--model", "pi3", "--key", prefix, "--out", filepath.Join(t.TempDir(), "x")); code != 1 || !strings.Contains(errs, "image-options") {
		t.Errorf("model pi3: %d %q", code, errs)
	}
}

func TestImageUsage(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "release.key")
	if code, _, errs := runImage(t, "keygen", key); code != 0 {
		t.Fatal(errs)
	}
	out := filepath.Join(dir, "out")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"hpc"}, 2, "--key"},
		{[]string{"hpc", "--key", key}, 2, "--out"},
		{[]string{"hpc", "--key", key, "--out", out}, 2, "--gateway-key"},
		{[]string{"hpc", "--key", key, "--out", out, "--gateway-key", key + ".pub", "--not-after", "soon"}, 2, "2006-01-02"},
		{[]string{"hpc", "--key", key, "--out", out, "--gateway-key", key + ".pub", "--profile", "mine"}, 1, "image-options"},
		{[]string{"hpc", "--key", filepath.Join(dir, "none"), "--out", out, "--gateway-key", key + ".pub"}, 1, "none"},
		{[]string{"hpc", "--key", key, "--out", out, "--wrong"}, 2, "wrong"},
		{[]string{"verify"}, 2, "directory"},
		{[]string{"sign", dir}, 2, "--key"},
		{[]string{"sign", dir, "--key", key}, 1, "trust file"},
		{[]string{"keygen"}, 2, "file name"},
		{[]string{"pi"}, 2, "--model"},
		{[]string{"pi", "--model", "pi4", "--key", key}, 2, "--out"},
		{[]string{"pi", "--model", "pi4", "--key", key, "--out", out}, 1, "policy"},
	} {
		if code, _, errs := runImage(t, c.args...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit %d, %q; want %d with %q", c.args, code, errs, c.code, c.says)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused build left something")
	}
}

func TestImageVerifyOfNothingEndsWithOne(t *testing.T) {
	code, out, _ := runImage(t, "verify", t.TempDir(), "--json")
	var r hpc.Report
	if err := json.Unmarshal([]byte(out), &r); code != 1 || err != nil || r.OK || r.Reason != string(hpc.ReasonRead) {
		t.Fatalf("%d %q %v", code, out, err)
	}
	if code, out, _ := runImage(t, "verify", t.TempDir()); code != 1 || !strings.Contains(out, "FAIL") {
		t.Fatalf("%d %q", code, out)
	}
}

func TestImageHelpHasExamples(t *testing.T) {
	for _, c := range []string{"hpc", "pi", "verify", "sign", "keygen"} {
		if code, out, _ := runImage(t, c, "--help"); code != 0 || !strings.Contains(out, "Example:\n  portcullis image") {
			t.Errorf("%s: %d %q", c, code, out)
		}
	}
}
