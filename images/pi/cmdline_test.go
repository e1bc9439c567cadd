package pi

import (
	"testing"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/recipe"
)

// TestAttackOldSoftwareBesideTheNewBootImage: two releases with the same system. The
// firmware starts the old one, whose signature is still good, and what pi-init reads
// as boot.img is the new one: the command line alone tells them apart.
func TestAttackOldSoftwareBesideTheNewBootImage(t *testing.T) {
	root := new(rootInfo)
	line := func(sequence uint64) string {
		b := &builder{o: Options{Sequence: sequence}, recipe: &recipe.Recipe{Cmdline: []string{"panic=10"}}}
		return b.cmdline(root)
	}
	newest := [32]byte{4} // of the boot.img on the card
	want := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(newest, line(4))...)
	got := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(newest, line(3))...)
	if got[card.PCRBoot] != want[card.PCRBoot] || got[card.PCRCmdline] == want[card.PCRCmdline] {
		t.Errorf("release 3 measures as release 4: %q", line(3))
	}
	if own, err := card.Cmdline("cma=64M " + line(4)); err != nil || own != line(4) {
		t.Errorf("%q, %v", own, err)
	}
}
