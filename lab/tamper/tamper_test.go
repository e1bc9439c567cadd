package tamper

import (
	"context"
	"os"
	"regexp"
	"testing"
	"time"

	"portcullis/lab"
)

// honest is how many answers of the PC are looked at before it is attacked.
const honest = 8

// TestAttacksAreFound boots one PC, looks that nothing is found of it, commits
// every attack of the table that needs no waiting, and waits for the finding of
// each. With PORTCULLIS_TAMPER=all those that need a PC that has settled are
// committed as well; make soak does that (deploy/soak.sh).
func TestAttacksAreFound(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	o := lab.Options{Name: "tamper", State: t.TempDir(), Builder: &lab.Builder{Repository: "../.."}}
	if testing.Verbose() {
		o.Events = (&lab.Printer{Out: os.Stderr}).Print
	}
	l, err := lab.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	mark := l.Log.Mark()
	if _, err := l.Boot(ctx, 5*time.Minute); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Exec(ctx, "/usr/bin/systemctl", "is-system-running", "--wait"); err != nil || r.Exit != 0 {
		t.Fatalf("the PC's systemd: %s %v", r.Stdout, err)
	}
	attacks, wait := chosen()
	for at, n := l.Log.Mark(), 0; n < honest; n++ {
		if _, err := l.Log.Wait(ctx, at, lab.Is("evidence")); err != nil {
			t.Fatalf("answers of the honest PC: %v; %s", err, l.Why(mark))
		}
		at = l.Log.Mark()
	}
	if wait > 0 {
		time.Sleep(wait) // the PC counts as starting until then
	}
	for _, e := range l.Log.Since(mark) {
		if e.Name == "finding" && e.Text("class") != "info" {
			t.Errorf("found on an honest PC: %s %s: %s", e.Text("probe"), e.Text("reason"), e.Text("detail"))
		}
	}
	results, err := All(ctx, l, attacks, 90*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		t.Log(r)
		if !r.Found {
			t.Error(r)
		}
	}
	if err := Undo(ctx, l, attacks); err != nil {
		t.Error(err)
	}
}

// chosen are the attacks to commit, and how long the PC must have been up.
func chosen() (attacks []Attack, wait time.Duration) {
	for _, a := range Attacks {
		if a.Uptime > 0 && os.Getenv("PORTCULLIS_TAMPER") != "all" {
			continue
		}
		attacks, wait = append(attacks, a), max(wait, a.Uptime)
	}
	return attacks, wait
}

func TestTheTableIsWhole(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for _, a := range Attacks {
		if !name.MatchString(a.Name) || seen[a.Name] || len(a.Reasons) == 0 || a.FoundBy == "" || a.Detail == "" || len(a.Commit) == 0 && a.Host == nil {
			t.Errorf("%+v", a)
		}
		seen[a.Name] = true
	}
}
