package piinit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"portcullis/hardware/zymbit"
	"portcullis/images/card"
)

// kept plays the card's first partition.
type kept struct {
	s   *card.ZymbitState
	err error
}

func (k *kept) ZymbitState() (*card.ZymbitState, error) { return k.s, k.err }
func (k *kept) SetZymbitState(s *card.ZymbitState) error {
	k.s, k.err = s, nil
	return nil
}

func moduleState(text string) *card.ZymbitState {
	if text == "" {
		return nil
	}
	return &card.ZymbitState{Files: []card.ZymbitFileEntry{{Name: "id", Mode: 0o600, Data: []byte(text)}}}
}

// TestModuleStateIsTheLatest: of the card's copy, what the tools made of it in this boot
// and what the running system left, the latest change is kept in all places.
func TestModuleStateIsTheLatest(t *testing.T) {
	for name, c := range map[string]struct {
		card, tools, system, want string
		worked                    bool
	}{
		"no module":                    {"", "", "", "", false},
		"as flashed":                   {"1", "1", "", "1", true},
		"nothing changed":              {"1", "1", "1", "1", true},
		"the system changed":           {"1", "1", "2", "2", true},
		"the tools changed":            {"1", "2", "1", "2", true},
		"both: the tools last":         {"1", "3", "2", "3", true},
		"made by the tools":            {"", "1", "", "1", true},
		"card's copy damaged":          {"damaged", "", "2", "2", false},
		"card's copy older, no unlock": {"1", "2", "9", "9", false},
		"no unlock, nothing else":      {"1", "2", "", "2", false},
	} {
		root, tools := t.TempDir(), filepath.Join(t.TempDir(), "zymbit")
		system := filepath.Join(root, dataDir, zymbitKept)
		if err := os.MkdirAll(filepath.Dir(system), 0o755); err != nil {
			t.Fatal(err)
		}
		for dir, text := range map[string]string{tools: c.tools, system: c.system} {
			if s := moduleState(text); s != nil {
				if err := s.Write(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		conf := &kept{s: moduleState(c.card)}
		if c.card == "damaged" {
			conf.s, conf.err = nil, errors.New("checksum")
		}
		if err := keepZymbit(root, tools, c.worked, conf); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		now, err := card.ReadZymbitState(system)
		if want := moduleState(c.want); err != nil || !now.Equal(want) || !conf.s.Equal(want) || conf.err != nil {
			t.Errorf("%s: system %+v, card %+v, %v", name, now, conf.s, err)
		}
	}
	// A volume of somebody else's leads elsewhere.
	root, elsewhere := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, dataDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(root, dataDir, zymbitKept)); err != nil {
		t.Fatal(err)
	}
	if err := keepZymbit(root, filepath.Join(t.TempDir(), "none"), false, &kept{s: moduleState("1")}); err == nil {
		t.Error("a link is taken for the module's state")
	}
	if err := keepZymbit(t.TempDir(), filepath.Join(t.TempDir(), "none"), false, &kept{err: errors.New("damaged")}); err == nil {
		t.Error("a damaged copy and nothing else is no problem")
	}
}

// TestAttackEnvironmentFromTheCard: the vendor's settings lie on the card in the clear;
// nothing of them reaches the tools but the vendor's own names.
func TestAttackEnvironmentFromTheCard(t *testing.T) {
	e, err := zymbit.ParseEnv("LD_PRELOAD=/var/lib/zymbit/x.so\nZK_LOG=1\nPATH=/var/lib/zymbit\nZK_GPIO_WAKE_PIN=516\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := vendorsOwn(e); !slices.Equal(got.Other, []string{"ZK_LOG=1"}) || got.WakePin != 516 {
		t.Errorf("%+v", got)
	}
}
