package server

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"portcullis/attestserver/verdict"
)

// recordEnv names the directory of a record that a child writes until it is killed.
const recordEnv = "PORTCULLIS_TEST_RECORD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(recordEnv); dir != "" {
		writeUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// testKey signs the logs of these tests, in two processes.
func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) }

func openRecord(t testing.TB, dir string) *Record {
	t.Helper()
	r, err := OpenRecord(dir, testKey())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// session makes the n-th session id of a test.
func session(n int) string {
	const digits = "abcdefghijklmnopqrstuvwxyz"
	id := []byte(strings.Repeat("a", 26))
	for i := range 4 {
		id[i] = digits[n%26]
		n /= 26
	}
	return string(id)
}

func mustWrite(t testing.TB, r *Record, e entry) {
	t.Helper()
	if _, err := r.write(e, false); err != nil {
		t.Fatal(err)
	}
}

// acknowledged is what the child says after a write that was to be durable.
type acknowledged struct {
	PC, Session, State string
	Index              int64
}

const killedPCs = 32

func writeUntilKilled(dir string) {
	r, err := OpenRecord(dir, testKey())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var out sync.Mutex
	say := json.NewEncoder(os.Stdout)
	for pc := range killedPCs {
		go func() {
			for n := 0; ; n++ {
				state := []verdict.State{verdict.Trusted, verdict.Suspect, verdict.Quarantined}[n%3]
				e := entry{PC: fmt.Sprintf("pc-%d", pc), Session: session(n / 3), State: state.String(), Failures: uint64(n % 3)}
				index, err := r.write(e, true)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				out.Lock()
				say.Encode(acknowledged{e.PC, e.Session, e.State, index})
				out.Unlock()
			}
		}()
	}
	for {
		if err := r.publish(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// What was said to be recorded is in the log after a kill, wherever among appends,
// commits, checkpoints and changes of the tail it fell, and so is each PC's quarantine.
func TestInvariant06_KillBetweenAppendAndCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "verdicts")
	total := 0
	for range 3 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), recordEnv+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var all []acknowledged
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var a acknowledged
			if json.Unmarshal(lines.Bytes(), &a) != nil {
				break // the line that the kill has torn
			}
			if all = append(all, a); len(all) == 700 {
				child.Process.Kill()
			}
		}
		child.Wait()
		if len(all) < 700 {
			t.Fatalf("the child ended by itself after %d", len(all))
		}
		r, err := OpenRecord(dir, testKey())
		if err != nil {
			t.Fatal(err)
		}
		newest := make(map[string]acknowledged)
		byIndex := make(map[int64]acknowledged)
		for _, a := range all {
			byIndex[a.Index] = a
			newest[a.PC] = a
		}
		index, found := int64(0), 0
		if err := r.log.Each(0, func(b []byte) error {
			var e entry
			if err := json.Unmarshal(b, &e); err != nil {
				return err
			}
			if a, ok := byIndex[index]; ok {
				if a != (acknowledged{e.PC, e.Session, e.State, index}) {
					t.Errorf("entry %d is %+v, acknowledged was %+v", index, e, a)
				}
				found++
			}
			index++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if found != len(all) {
			t.Errorf("%d of %d acknowledged entries are there", found, len(all))
		}
		for pc, a := range newest {
			// The child may have come one entry further than it said.
			if a.State == verdict.Quarantined.String() && !r.wasQuarantined(pc, a.Session) {
				t.Errorf("%s: the quarantine of %s is forgotten", pc, a.Session)
			}
		}
		total += len(all)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d acknowledged entries of %d PCs over three kills", total, killedPCs)
}

// However much others had to say since, and whatever became of the file beside the
// log, no PC's quarantine is forgotten.
func TestInvariant06_NoQuarantineIsForgotten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "verdicts")
	r := openRecord(t, dir)
	mustWrite(t, r, entry{PC: "bad", Session: session(1), State: verdict.Quarantined.String(), Failures: 2,
		Findings: []entryFinding{{Class: "fatal"}}})
	mustWrite(t, r, entry{PC: "shaky", Session: session(2), State: verdict.Suspect.String(), Failures: 1})
	for i := range 3*historyEvery + 7 {
		mustWrite(t, r, entry{PC: fmt.Sprintf("good-%d", i%5), Session: session(3), State: verdict.Trusted.String()})
		if i%400 == 0 {
			if err := r.publish(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(what string, r *Record) {
		t.Helper()
		if !r.wasQuarantined("bad", session(1)) {
			t.Errorf("%s: the quarantine is forgotten", what)
		}
		if failed, fatal := r.hasFailed("bad", session(1)); !failed || !fatal {
			t.Errorf("%s: the failure of the quarantined one: %v %v", what, failed, fatal)
		}
		if failed, fatal := r.hasFailed("shaky", session(2)); !failed || fatal {
			t.Errorf("%s: the failure: %v %v", what, failed, fatal)
		}
		for _, pc := range []string{"good-1", "shaky", "bad", ""} {
			if r.wasQuarantined(pc, session(3)) || r.wasQuarantined(pc, "") {
				t.Errorf("%s: %q was never quarantined in that session", what, pc)
			}
		}
		if r.wasQuarantined("good-1", session(1)) {
			t.Errorf("%s: a session of one PC counts for another", what)
		}
	}
	check("running", r)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, historyFile)
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string]string{
		"as it was": string(kept), "empty": "", "torn": string(kept[:len(kept)/2]), "of another log": `{"entries":999999,"pcs":{}}`,
		"negative": `{"entries":-1,"pcs":{}}`, "none": `{"entries":12}`, "bad session": `{"entries":9,"pcs":{"bad":{"quarantined":"x"}}}`,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := OpenRecord(dir, testKey())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		check(what, r)
		if n := r.past.Entries; n != 3*historyEvery+9 {
			t.Errorf("%s: made of %d entries", what, n)
		}
		r.Close()
	}
	// The file is of use: with it few entries are read.
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	h := readHistory(path, 3*historyEvery+9)
	if behind := 3*historyEvery + 9 - h.Entries; behind < 0 || behind > 2*historyEvery {
		t.Errorf("%d entries behind the log", behind)
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte(`{"entries":3,"pcs":{"":{"quarantined":"` + session(1) + `","failed":"` + session(1) + `","fatal":true}}}`))
	f.Add([]byte(`{"entries":1,"pcs":{}}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHistory(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseHistory(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}

// Verdicts wait for no disk: of many PCs' answers, changes and failures only a session's
// quarantine costs an fsync, and those that come at the same time share theirs.
func TestVerdictsWaitForNoDisk(t *testing.T) {
	r := openRecord(t, t.TempDir())
	before := r.log.Syncs()
	const pcs, rounds = 50, 20
	for round := range rounds {
		for pc := range pcs {
			state := verdict.Trusted
			if round%5 == 4 {
				state = verdict.Suspect
			}
			mustWrite(t, r, entry{PC: fmt.Sprint(pc), Session: session(pc), Sequence: uint64(round), State: state.String(), Failures: uint64(round / 5)})
		}
	}
	if n := r.log.Syncs() - before; n != 0 {
		t.Errorf("%d fsyncs for %d verdicts", n, pcs*rounds)
	}
	var group sync.WaitGroup
	for pc := range pcs {
		group.Go(func() {
			mustWrite(t, r, entry{PC: fmt.Sprint(pc), Session: session(pc), State: verdict.Quarantined.String()})
		})
	}
	group.Wait()
	if n := r.log.Syncs() - before; n == 0 || n > pcs {
		t.Errorf("%d fsyncs for %d quarantines", n, pcs)
	}
	// One that is quarantined already costs nothing more.
	before = r.log.Syncs()
	mustWrite(t, r, entry{PC: "1", Session: session(1), State: verdict.Quarantined.String()})
	if n := r.log.Syncs() - before; n != 0 {
		t.Errorf("%d fsyncs for a quarantine that was known", n)
	}
}
