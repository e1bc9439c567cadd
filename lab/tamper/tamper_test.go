package tamper

import (
	"context"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"portcullis/images/hpc"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
	"portcullis/lab"
	"portcullis/lab/scenario"
	rootfs "portcullis/rootfs/hpc"
)

// TestAttacksAreFound boots one PC, looks that nothing is found of it, commits
// every attack of the table that needs no waiting, and waits for the finding of
// each. The whole table is run by `portcullis lab tamper` (deploy/soak.sh).
func TestAttacksAreFound(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	o := Options{Name: "tamper", State: t.TempDir(), Builder: &lab.Builder{Repository: "../.."}, Attacks: Quick(),
		Report: func(r Result) {
			t.Logf("%s: %s %s (%s) after %d challenges, %.1f s", r.Attack, r.Outcome, r.Reason, r.Detail, r.Challenges, r.Seconds)
			if !r.OK() {
				t.Errorf("%s: %s, want %s: %s", r.Attack, r.Outcome, r.Expected, r.Detail)
			}
		}}
	if testing.Verbose() {
		o.Events = (&lab.Printer{Out: os.Stderr}).Print
	}
	r, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range r.Alarms {
		t.Errorf("found on an honest PC: %+v", a)
	}
	if r.Answers < honestAnswers || len(r.Results) != len(o.Attacks) {
		t.Errorf("%d answers, %d results of %d attacks", r.Answers, len(r.Results), len(o.Attacks))
	}
}

func TestTheTableIsWhole(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	var scenes []string
	for _, p := range scenario.Plays() {
		for _, s := range p.Scenes {
			scenes = append(scenes, s.Name)
		}
	}
	seen := map[string]bool{}
	for _, a := range Attacks {
		known := a.Refusal != "" || a.Unseen != ""
		if !name.MatchString(a.Name) || seen[a.Name] || known == (a.FoundBy != "" && len(a.Reasons) > 0) || a.Refusal != "" && a.Unseen != "" {
			t.Errorf("%+v", a)
		}
		if played := a.Stage == Played; played != slices.Contains(scenes, a.Scene) || !played && len(a.Commit) == 0 && a.Host == nil {
			t.Errorf("%s: nothing is done, or no such scene", a.Name)
		}
		seen[a.Name] = true
	}
	if len(Attacks) < 40 {
		t.Errorf("%d attacks, want at least 40", len(Attacks))
	}
}

// The image of the PC with USB is the lab's but for its kernel.
func TestRecipeOfThePCWithUSB(t *testing.T) {
	r, err := recipe.Load(recipe.Builtin{Name: hpc.RecipeName, FS: rootfs.FS, Entry: manifest.ProfileLab + ".yaml"}, "../../"+usbRecipe)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kernel.Package != "linux-image-amd64" || !r.LabChannel || !slices.Contains(r.Kernel.Root, "usb_storage") || !slices.Contains(r.Kernel.Root, "virtio_net") {
		t.Errorf("%+v, the lab's channel: %t", r.Kernel, r.LabChannel)
	}
}

func TestQuantiles(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for _, c := range []struct{ q, want float64 }{{0.5, 3}, {0.99, 5}, {0.2, 1}, {0, 1}} {
		if got := quantile(v, c.q); got != c.want {
			t.Errorf("quantile %v is %v, want %v", c.q, got, c.want)
		}
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("of nothing")
	}
}

// What was not found, or could not be committed, makes a run fail; to find more than
// was expected does not.
func TestReport_JudgesWhatBecameOfAnAttack(t *testing.T) {
	for _, c := range []struct {
		outcome, expected Outcome
		ok                bool
	}{{Found, Found, true}, {Refused, Refused, true}, {NotFound, NotFound, true}, {Found, NotFound, true},
		{NotFound, Found, false}, {Failed, Found, false}, {Failed, NotFound, false}, {NotFound, Refused, false}, {Found, Refused, false}, {Refused, Found, false}} {
		r := Report{Results: []Result{{Attack: "kexec", Outcome: c.outcome, Expected: c.expected}}}
		if r.OK() != c.ok {
			t.Errorf("%+v: ok is %t", c, r.OK())
		}
	}
	if (Report{Alarms: []Alarm{{}}}).OK() {
		t.Error("a false alarm is no failure")
	}
}
