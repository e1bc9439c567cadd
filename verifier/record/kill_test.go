package record

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
)

// child is what the process that gets killed is told, in its environment.
type child struct {
	Dir       string
	Key       []byte
	Approvers []byte
	Envelopes [][]byte
	Request   approval.Request
}

const childEnv = "RECORD_TEST_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := runChild(text); err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild permits, refuses, adds and signs until it is killed; it prints the index
// of what it was told to be permitted.
func runChild(text string) error {
	var c child
	b, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(c.Key)
	if err != nil {
		return err
	}
	approvers, err := approval.ParseApprovers(c.Approvers)
	if err != nil {
		return err
	}
	r, err := Open(Options{Dir: c.Dir, Key: key.(ed25519.PrivateKey), Approvers: approvers, Now: time.Now})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if i < len(c.Envelopes) {
			added, err := r.Add(c.Envelopes[i])
			if err != nil {
				return err
			}
			fmt.Println(added.Index)
		}
		p, err := r.Decide(c.Request)
		if err != nil {
			return err
		}
		fmt.Println(p.Index)
		if i%3 == 0 {
			if err := r.log.Publish(); err != nil {
				return err
			}
		}
	}
}

// What a caller was told to be permitted is in the log after kill -9, in every
// round, and the log goes on.
func TestInvariant07_KillLosesNoPermission(t *testing.T) {
	r := newRig(t)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	a := pxed(1, "1")
	a.NotBefore, a.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	c := child{Dir: filepath.Join(t.TempDir(), "log"), Envelopes: [][]byte{r.sign(a)}, Request: start(a)}
	c.Approvers, _ = r.approvers.Encode()
	c.Key, _ = x509.MarshalPKCS8PrivateKey(r.options.Key)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	seen := int64(-1)
	for round := range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+base64.StdEncoding.EncodeToString(b))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := rand.IntN(25); lines.Scan(); n-- {
			index, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				t.Fatalf("round %d: the child says %q", round, lines.Text())
			}
			seen = max(seen, index)
			if n == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if entries := countOf(t, c.Dir, r.options.Key); entries <= seen {
			t.Fatalf("round %d: entry %d was answered, the log has %d", round, seen, entries)
		}
	}
	if seen < 50 {
		t.Errorf("only %d entries in all rounds: nothing was tried", seen)
	}
}

// countOf opens the log as verifierd does, which checks all of it.
func countOf(t *testing.T, dir string, key ed25519.PrivateKey) int64 {
	t.Helper()
	rec, err := Open(Options{Dir: dir, Key: key, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	n, _ := rec.log.Size()
	return n
}

// The tail ends anywhere after a power cut: what is left is a beginning of what was
// written, or the log is not opened; never is something permitted that was not.
func TestTornTails(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.approve(a)
	r.entries() // signs two
	r.wants("start", start(a), "")
	r.wants("start", start(a), "")
	tail := filepath.Join(r.options.Dir, "tail-00000000000000000000.journal")
	whole, err := os.ReadFile(tail)
	if err != nil {
		t.Fatal(err)
	}
	before := t.TempDir()
	if err := os.CopyFS(before, os.DirFS(r.options.Dir)); err != nil {
		t.Fatal(err)
	}
	opened, rolled := map[int64]int{}, 0
	for cut := len(whole); cut >= 0; cut -= 1 + len(whole)/60 {
		o := r.options
		o.Dir = filepath.Join(t.TempDir(), "log")
		if err := errors.Join(os.CopyFS(o.Dir, os.DirFS(before)), os.WriteFile(filepath.Join(o.Dir, filepath.Base(tail)), whole[:cut], 0o600)); err != nil {
			t.Fatal(err)
		}
		rec, err := Open(o)
		if err != nil {
			if reason := translog.Reason(err); reason != translog.ReasonRolledBack {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			rolled++
			continue
		}
		n, _ := rec.log.Size()
		opened[n]++
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if rolled == 0 || opened[2] == 0 || opened[3] == 0 || opened[4] == 0 || len(opened) != 3 {
		t.Errorf("opened with %v entries, %d were not opened", opened, rolled)
	}
	if !bytes.Contains(whole, []byte(strings.Repeat("c", 64))) {
		t.Error("the tail does not hold the entries: another file was cut")
	}
}
