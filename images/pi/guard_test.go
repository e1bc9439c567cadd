package pi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/pi"
)

// Whatever a program is called: a release has none with the lab's channel or the
// root of trust for tests. Development images may.
func TestReleaseCannotHoldLabChannelOrFakeRoot(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) program {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte(content), 0o755))
		return program{name: name, path: p}
	}
	harmless := write("gatewayd", "\x7fELF … portcullis/hardware/tpm2.Open …")
	for _, c := range []struct {
		p      program
		reason debroot.Reason
	}{
		{write("pi-init", "\x7fELF … portcullis/hardware/fake.(*Chip).Unseal …"), ReasonFakeRoot},
		{write("portcullis", "\x7fELF … org.portcullis.lab …"), debroot.ReasonLabInReal},
		{write("hpc-lab", "\x7fELF"), debroot.ReasonLabInReal},
	} {
		wantReason(t, guardPrograms(card.ProfileRelease, []program{harmless, c.p}), c.reason)
		must(t, guardPrograms(card.ProfileDev, []program{harmless, c.p}))
	}
	must(t, guardPrograms(card.ProfileRelease, []program{harmless}))
}

// A user's recipe cannot bring the channel into an image for a real machine, and
// the build says so before anything is compiled or fetched.
func TestRecipeCannotBringLabChannel(t *testing.T) {
	for name, text := range map[string]string{
		"its unit":         "files:\n  - {path: /etc/systemd/system/portcullis-lab.service, content: '[Service]'}\n",
		"a link to it":     "links:\n  - {path: /usr/bin/tool, to: /usr/lib/portcullis/hpc-lab}\n",
		"its unit enabled": "enable: [portcullis-lab.service]\n",
		"its flag":         "lab_channel: true\n",
		"another init":     "cmdline: [rdinit=/bin/sh]\n",
		"another root":     "cmdline: [portcullis.verity=00]\n",
	} {
		file := filepath.Join(t.TempDir(), "mine.yaml")
		must(t, os.WriteFile(file, []byte("schema: "+recipe.Schema+"\nextends: pi\n"+text), 0o644))
		for _, o := range []Options{{Model: card.ModelPi4, Profile: card.ProfileDev}, {Model: card.ModelQEMU, Profile: card.ProfileRelease}} {
			o.Recipe, o.CacheDir = file, t.TempDir()
			_, err := newBuilder(o)
			var ours *Error
			var theirs *recipe.Error
			switch {
			case errors.As(err, &ours) && ours.Reason == debroot.ReasonLabInReal:
			case errors.As(err, &theirs) && theirs.Reason == recipe.ReasonReserved:
			default:
				t.Errorf("%s, %s: got %v", name, o.Model, err)
			}
		}
	}
}

// The firmware's configuration names the files that the builder writes.
func TestConfigurationOfTheFirmware(t *testing.T) {
	for model, trees := range map[string][]string{card.ModelPi4: {"bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4.dtb"}, card.ModelPi5: nil} {
		r, err := recipe.Load(recipe.Builtin{Name: RecipeName, FS: rootfs.FS, Entry: model + ".yaml"}, "")
		must(t, err)
		lines := map[string]bool{}
		named := 0
		for _, l := range strings.Split(string(r.Boot.Config), "\n") {
			lines[l] = true
			if strings.HasPrefix(l, "device_tree=") {
				named++
			}
			if strings.HasPrefix(l, "dtoverlay") || strings.HasPrefix(l, "include") {
				t.Errorf("%s: %q takes in what is not measured as a whole", model, l)
			}
		}
		for _, want := range []string{"arm_64bit=1", "kernel=" + card.KernelFile, "initramfs " + card.InitramfsFile + " followkernel", "cmdline=" + card.CmdlineFile, "enable_uart=1"} {
			if !lines[want] {
				t.Errorf("%s: no line %q", model, want)
			}
		}
		for _, tree := range trees {
			if !lines["device_tree="+tree] {
				t.Errorf("%s: %s is not named", model, tree)
			}
		}
		if named != len(trees) {
			t.Errorf("%s: %d device trees are named, %d are there", model, named, len(trees))
		}
	}
}

// A kernel of another architecture, or a compressed one, would start nothing.
func TestKernelIsAnImage(t *testing.T) {
	image := make([]byte, 64)
	copy(image, "MZ")
	copy(image[56:], "ARM\x64")
	must(t, checkKernel(image))
	wantReason(t, checkKernel(image[:60]), debroot.ReasonMissing)
	image[56] = 'a'
	wantReason(t, checkKernel(image), debroot.ReasonMissing)
}
