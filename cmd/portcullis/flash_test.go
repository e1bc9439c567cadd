package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/flash"
	"portcullis/images/flash/flashtest"
	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/config"
)

const goodSeed = "schema: portcullis/seed/v1\nhostname: door\nuplink: dhcp\n"

// flashing.card is a file that stands for a card, with its first bytes not zero.
func cardFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "card.img")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xA5}, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// runFlash runs the command as main does.
func runFlash(t *testing.T, typed string, args ...string) (code int, out, errOut string) {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	var o, e bytes.Buffer
	root := &cli.Command{Summary: "test", Sub: []*cli.Command{flashCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{In: strings.NewReader(typed), Out: &o, Err: &e}, append([]string{"flash"}, args...))
	return code, o.String(), e.String()
}

func TestFlashWritesAFileAsItWritesACard(t *testing.T) {
	i := flashtest.New(t)
	seed := filepath.Join(t.TempDir(), "seed.yml")
	if err := os.WriteFile(seed, []byte(goodSeed), 0o644); err != nil {
		t.Fatal(err)
	}
	target := cardFile(t, 2<<30)
	module := &card.ZymbitState{Files: []card.ZymbitFileEntry{{Name: "zkenv.conf", Mode: 0o644, Data: []byte("ZK_GPIO_WAKE_PIN=516\n")}}}
	vendor := filepath.Join(t.TempDir(), "zymbit")
	if err := module.Write(vendor); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := runFlash(t, filepath.Base(target)+"\n", i.Path, target, "--key", i.Key, "--seed", seed, "--zymbit-state", vendor)
	if code != 0 || !strings.Contains(out, "holds the image") {
		t.Fatalf("%d\n%s\n%s", code, out, errOut)
	}
	for _, want := range []string{"portcullis qemu dev 1", "by a key that you gave", "Everything on " + target + " will be lost", "write   100 %", "verify  100 %"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("no %q in\n%s", want, errOut)
		}
	}
	f, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := flash.SeedOffset(f, flashtest.Size)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, card.SeedSize)
	if _, err := f.ReadAt(got, at); err != nil || !strings.HasPrefix(string(got), goodSeed) {
		t.Errorf("%.60q, %v", got, err)
	}
	conf := flashtest.Layout().Partitions[card.PartConf-1]
	part := io.NewSectionReader(f, conf.Offset(), conf.Size())
	c, err := card.OpenConf(struct {
		io.ReaderAt
		io.WriterAt
	}{part, nil}, conf.Size())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.ZymbitState(); err != nil || !s.Equal(module) {
		t.Errorf("the module's state: %+v, %v", s, err)
	}
	if code, _, errOut := runFlash(t, "", i.Path, cardFile(t, 2<<30), "--yes", "--zymbit-state", t.TempDir()); code != 1 || !strings.Contains(errOut, "no file is there") {
		t.Errorf("an empty directory: %d %s", code, errOut)
	}
}

func TestFlashEvents(t *testing.T) {
	i := flashtest.New(t)
	code, out, errOut := runFlash(t, "", i.Path, cardFile(t, 2<<30), "--json", "--yes")
	if code != 0 || errOut != "" {
		t.Fatalf("%d, %s", code, errOut)
	}
	var names []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var e struct {
			Event  string
			Signed *bool
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if len(names) == 0 || names[len(names)-1] != e.Event {
			names = append(names, e.Event)
		}
		if e.Event == "flash.started" && (e.Signed == nil || *e.Signed) {
			t.Errorf("an image without a key to check is called signed: %s", line)
		}
	}
	if got := strings.Join(names, " "); got != "flash.started flash.progress flash.done" {
		t.Error(got)
	}
}

// Whatever can be known before is refused before: not a byte of the card changes.
func TestFlashRefusesBeforeItWrites(t *testing.T) {
	i := flashtest.New(t)
	badSeed := filepath.Join(t.TempDir(), "seed.yml")
	if err := os.WriteFile(badSeed, []byte(goodSeed+"colour: red\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hugeSeed := filepath.Join(t.TempDir(), "seed.yml")
	if err := os.WriteFile(hugeSeed, bytes.Repeat([]byte("#\n"), card.SeedSize), 0o644); err != nil {
		t.Fatal(err)
	}
	stranger := flashtest.New(t)
	for name, c := range map[string]struct {
		size  int64
		typed string
		args  []string
		code  int
		want  string
	}{
		"settings with a mistake": {2 << 30, "", []string{"--yes", "--seed", badSeed}, 1, "colour"},
		"settings too large":      {2 << 30, "", []string{"--yes", "--seed", hugeSeed}, 1, "larger than"},
		"settings not there":      {2 << 30, "", []string{"--yes", "--seed", badSeed + ".no"}, 1, "no such file"},
		"signed by somebody else": {2 << 30, "", []string{"--yes", "--key", stranger.Key}, 1, manifest.ReasonSignature},
		"too few signatures":      {2 << 30, "", []string{"--yes", "--key", i.Key, "--key", stranger.Key, "--threshold", "2"}, 1, manifest.ReasonThreshold},
		"key not there":           {2 << 30, "", []string{"--yes", "--key", i.Key + ".no"}, 1, "no such file"},
		"too small":               {1 << 30, "", []string{"--yes"}, 1, flash.ReasonTooSmall},
		"not confirmed":           {2 << 30, "yes\n", nil, 1, flash.ReasonNotConfirmed},
		"nobody there":            {2 << 30, "", nil, 1, flash.ReasonNotConfirmed},
		"as events":               {1 << 30, "", []string{"--yes", "--json"}, 1, `"reason":"` + flash.ReasonTooSmall + `"`},
		"a word too many":         {2 << 30, "", []string{"--yes", "more"}, 2, "an image and a device"},
		"unknown flag":            {2 << 30, "", []string{"--quick"}, 2, "quick"},
		"list with words":         {2 << 30, "", []string{"--list"}, 2, "--list"},
	} {
		t.Run(name, func(t *testing.T) {
			target := cardFile(t, c.size)
			code, out, errOut := runFlash(t, c.typed, append([]string{i.Path, target}, c.args...)...)
			if code != c.code || !strings.Contains(out+errOut, c.want) {
				t.Errorf("%d\n%s\n%s", code, out, errOut)
			}
			b := make([]byte, 1<<20)
			f, err := os.Open(target)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.ReadAt(b, 0); err != nil || len(bytes.Trim(b, "\xA5")) != 0 {
				t.Errorf("the card was touched, %v", err)
			}
		})
	}
}

// Control-C ends the run; the message says what the card is now and what to do.
func TestFlashInterrupted(t *testing.T) {
	i := flashtest.New(t)
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var o, e bytes.Buffer
	root := &cli.Command{Summary: "test", Sub: []*cli.Command{flashCommand()}}
	code := cli.Run(ctx, root, &cli.IO{In: strings.NewReader(""), Out: &o, Err: &e}, []string{"flash", "--yes", i.Path, cardFile(t, 2<<30)})
	if code != 1 || !strings.Contains(e.String(), "the same command goes on") {
		t.Errorf("%d, %s", code, &e)
	}
}

func TestFlashListOfThisMachine(t *testing.T) {
	code, out, errOut := runFlash(t, "", "--list", "--json")
	var disks []flash.Disk
	if err := json.Unmarshal([]byte(out), &disks); code != 0 || err != nil {
		t.Errorf("%d, %q, %s, %v", code, out, errOut, err)
	}
	if code, out, _ := runFlash(t, "", "--list"); code != 0 || out == "" {
		t.Errorf("%d, %q", code, out)
	}
}

func TestFlashLocksItsTarget(t *testing.T) {
	target := cardFile(t, 2<<30)
	d, err := flash.Host().Find(target)
	if err != nil {
		t.Fatal(err)
	}
	first, err := flash.OpenDevice(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flash.OpenDevice(d); flash.Reason(err) != flash.ReasonBusy {
		t.Errorf("opened twice: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := flash.OpenDevice(d)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	// The file was exchanged for another one since it was looked at.
	d.Size++
	if _, err := flash.OpenDevice(d); flash.Reason(err) != flash.ReasonNotDisk {
		t.Errorf("another file: %v", err)
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	if _, err := flash.OpenDevice(d); err == nil || errors.Is(err, os.ErrExist) {
		t.Errorf("no file: %v", err)
	}
}

// On the Pi a policy with a mistake would leave the built-in one in force, unnoticed, and
// with such approvers no verifier would start.
func TestSeedWithABadPolicyIsNotFlashed(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Replace(config.Example(base64.StdEncoding.EncodeToString(pub)), "  # policy_file: /var/lib/portcullis/attestd/policy.yaml ", "  policy_file: "+card.PolicyPath, 1)
	seed := "schema: portcullis/seed/v1\nconfig: |\n  " + strings.ReplaceAll(own, "\n", "\n  ") + "\npolicy: |\n  rules: [{name: a, when: WHEN, then: [report]}]\n"
	if _, err := seedImage("seed.yml", []byte(strings.Replace(seed, "WHEN", "banned", 1))); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if _, err := seedImage("seed.yml", []byte(strings.Replace(seed, "WHEN", "baned", 1))); err == nil || !strings.Contains(err.Error(), "seed.yml, policy:1") {
		t.Errorf("a bad one: %v", err)
	}
	seed = strings.Replace(seed, "WHEN", "banned", 1)
	key := base64.StdEncoding.EncodeToString(pub)
	if _, err := seedImage("seed.yml", []byte(seed+"approvers: '{\"threshold\":1,\"revoke_threshold\":1,\"keys\":[\""+key+"\"]}'\n")); err != nil {
		t.Errorf("good approvers: %v", err)
	}
	if _, err := seedImage("seed.yml", []byte(seed+"approvers: '{\"threshold\":2,\"revoke_threshold\":1,\"keys\":[\""+key+"\"]}'\n")); err == nil || !strings.Contains(err.Error(), "seed.yml, approvers: ") {
		t.Errorf("approvers who are too few: %v", err)
	}
}
