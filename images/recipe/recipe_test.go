package recipe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	rootfs "portcullis/rootfs/hpc"
	pirootfs "portcullis/rootfs/pi"
)

const head = "schema: portcullis/recipe/v1\n"

// base is a small but complete recipe to extend.
const base = head + `suite: trixie
components: [main]
packages: [bash]
kernel:
  package: linux-image-amd64
  stub: systemd-boot-efi
  initrd_modules: [loop]
squash: {level: 3, block_size: 4096}
`

func builtin(extra string) fs.FS {
	return fstest.MapFS{"lab.yaml": {Data: []byte(base + extra)}, "files/x": {Data: []byte("content")}}
}

func TestOurRecipesAreValid(t *testing.T) {
	for profile, lab := range map[string]bool{"lab": true, "generic": false} {
		r, err := Load(Builtin{"hpc", rootfs.FS, profile + ".yaml"}, "")
		if err != nil {
			t.Fatalf("%s: %v", profile, err)
		}
		if r.LabChannel != lab {
			t.Errorf("%s: lab channel %t", profile, r.LabChannel)
		}
		for _, w := range []string{"nokaslr", "lockdown=integrity", "init_on_free=1", "module.sig_enforce=1"} {
			if !slices.Contains(r.Cmdline, w) {
				t.Errorf("%s: the command line lacks %s", profile, w)
			}
		}
		for _, p := range []string{"docker.io", "systemd", "nftables"} {
			if !slices.Contains(r.Packages, p) {
				t.Errorf("%s: lacks %s", profile, p)
			}
		}
		for _, p := range []string{"openssh-server", "login", "python3"} {
			if slices.Contains(r.Packages, p) {
				t.Errorf("%s: has %s", profile, p)
			}
		}
	}
}

func writeRecipe(t *testing.T, dir, name, text string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUserRecipeExtendsOurs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "motd"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	writeRecipe(t, dir, "middle.yaml", head+"extends: hpc\npackages: [jq]\ncmdline: [quiet]\n")
	file := writeRecipe(t, dir, "mine.yaml", head+`extends: middle.yaml
packages: [tree]
squash: {level: 19}
files:
  - {path: /etc/motd, source: motd, mode: "0600"}
  - path: /etc/issue
    content: |
      two
      lines
links:
  - {path: /etc/alias, to: motd}
users:
  - {name: worker, uid: 200, home: /srv}
enable: [docker.socket]
`)
	r, err := Load(Builtin{"hpc", builtin("cmdline: [nokaslr]\n"), "lab.yaml"}, file)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Packages, " "); got != "bash jq tree" {
		t.Errorf("packages %q: lists grow from the extended recipe on", got)
	}
	if got := strings.Join(r.Cmdline, " "); got != "nokaslr quiet" {
		t.Errorf("command line %q", got)
	}
	if r.Squash != (Squash{19, 4096}) {
		t.Errorf("squash %+v: one value is replaced, the other stays", r.Squash)
	}
	if len(r.Files) != 2 || string(r.Files[0].Content) != "hello\n" || r.Files[0].Mode != 0o600 || string(r.Files[1].Content) != "two\nlines\n" || r.Files[1].Mode != 0o644 {
		t.Errorf("files %+v", r.Files)
	}
	if r.Files[0].At.Line != 6 || r.Files[0].At.File != "mine.yaml" {
		t.Errorf("position %s", r.Files[0].At)
	}
	if len(r.Users) != 1 || r.Users[0].Home != "/srv" || len(r.Links) != 1 {
		t.Errorf("users %+v links %+v", r.Users, r.Links)
	}
}

func TestRecipeErrorsNameFileLineAndReason(t *testing.T) {
	for _, c := range []struct {
		name, text string
		line       int
		reason     Reason
		says       string
	}{
		{"no YAML", head + "a: [\n", 2, ReasonSyntax, "not YAML"},
		{"a list", "- x\n", 1, ReasonSyntax, "mapping"},
		{"nothing", "", 0, ReasonSyntax, "not YAML"},
		{"two documents", head + "---\n" + head, 2, ReasonSyntax, "more than one"},
		{"no schema", "packages: [a1]\n", 1, ReasonValue, "schema"},
		{"another schema", "schema: portcullis/recipe/v2\n", 1, ReasonValue, "schema"},
		{"unknown key", head + "extends: hpc\npackagse: [jq]\n", 3, ReasonUnknown, "packages"},
		{"unknown key below", head + "extends: hpc\nkernel:\n  pkg: x1\n", 4, ReasonUnknown, "kernel.package"},
		{"key twice", head + "extends: hpc\nextends: hpc\n", 3, ReasonSyntax, "twice"},
		{"alias", head + "extends: hpc\npackages: &a [jq]\nwithout: *a\n", 4, ReasonSyntax, "written out"},
		{"text for a list", head + "extends: hpc\npackages: jq\n", 3, ReasonSyntax, "list"},
		{"bad package", head + "extends: hpc\npackages:\n  - jq\n  - 'rm -rf'\n", 5, ReasonValue, "package name"},
		{"option as package", head + "extends: hpc\npackages: ['--allow-unauthenticated']\n", 3, ReasonValue, "package name"},
		{"relative path", head + "extends: hpc\nfiles:\n  - {path: etc/x, content: a}\n", 4, ReasonValue, "absolute"},
		{"path upwards", head + "extends: hpc\nfiles:\n  - {path: /etc/../x, content: a}\n", 4, ReasonValue, "clean"},
		{"source upwards", head + "extends: hpc\nfiles:\n  - {path: /etc/x, source: ../../etc/shadow}\n", 4, ReasonValue, "beside"},
		{"absent source", head + "extends: hpc\nfiles:\n  - {path: /etc/x, source: gone}\n", 4, ReasonFile, "gone"},
		{"content and source", head + "extends: hpc\nfiles:\n  - {path: /etc/x, source: f, content: a}\n", 4, ReasonFile, "cannot read"},
		{"neither", head + "extends: hpc\nfiles:\n  - {path: /etc/x}\n", 4, ReasonValue, "either"},
		{"mode", head + "extends: hpc\nfiles:\n  - {path: /etc/x, content: a, mode: '0999'}\n", 4, ReasonValue, "octal"},
		{"unit", head + "extends: hpc\nenable: [docker]\n", 3, ReasonValue, "unit name"},
		{"uid", head + "extends: hpc\nusers:\n  - {name: me, uid: 0}\n", 4, ReasonValue, "100 to 999"},
		{"group twice", head + "extends: hpc\ngroups:\n  - {name: g, gid: 200}\n  - {name: g, gid: 201}\n", 5, ReasonValue, "already"},
		{"block size", head + "extends: hpc\nsquash: {block_size: 5000}\n", 3, ReasonValue, "power of two"},
		{"level", head + "extends: hpc\nsquash: {level: 23}\n", 3, ReasonValue, "1 to 22"},
		{"spaces in cmdline", head + "extends: hpc\ncmdline: ['a b']\n", 3, ReasonValue, "one word"},
		{"extends itself", head + "extends: mine.yaml\n", 2, ReasonLoop, "itself"},
		{"extends nothing there", head + "extends: other.yaml\n", 2, ReasonFile, "other.yaml"},
		{"extends an absolute path", head + "extends: /etc/recipe.yaml\n", 2, ReasonValue, "relative"},
		{"incomplete alone", head + "packages: [jq]\n", 0, ReasonValue, "extends: hpc"},
		{"glob of everything", head + "extends: hpc\nexclude: ['/']\n", 3, ReasonValue, "glob"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := writeRecipe(t, t.TempDir(), "mine.yaml", c.text)
			_, err := Load(Builtin{"hpc", builtin(""), "lab.yaml"}, file)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Reason != c.reason || e.At.Line != c.line || !strings.Contains(e.Msg, c.says) {
				t.Fatalf("got %v; want line %d, %s, %q", e, c.line, c.reason, c.says)
			}
			if strings.Contains(e.Error(), os.TempDir()) {
				t.Errorf("the message shows a path of this machine: %v", e)
			}
		})
	}
}

// What the builder writes cannot come from a user's recipe: neither the words
// that choose the root nor the directory of the agent nor the lab's flag.
func TestRecipeCannotTakeWhatIsTheBuilders(t *testing.T) {
	for _, text := range []string{
		"cmdline: ['roothash=00']\n", "cmdline: ['portcullis.verity=a,1,1']\n", "cmdline: ['init=/bin/sh']\n", "cmdline: ['rdinit=/bin/sh']\n", "cmdline: ['root=/dev/sda']\n",
		"files:\n  - {path: /usr/lib/portcullis/hpc-agent, content: x}\n",
		"files:\n  - {path: /usr/lib/portcullis, content: x}\n",
		"links:\n  - {path: /usr/lib/portcullis/hpc-lab, to: /bin/sh}\n",
		"directories:\n  - {path: /usr/lib/portcullis/x}\n",
		"join:\n  - {path: /usr/lib/portcullis/modules.allow, from: '/etc/*'}\n",
		"lab_channel: true\n",
	} {
		file := writeRecipe(t, t.TempDir(), "mine.yaml", head+"extends: hpc\n"+text)
		_, err := Load(Builtin{"hpc", builtin(""), "lab.yaml"}, file)
		var e *Error
		if !errors.As(err, &e) || e.Reason != ReasonReserved {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestMatchPath(t *testing.T) {
	for _, c := range []struct {
		glob, path string
		want       bool
	}{
		{"/usr/share/doc/**", "/usr/share/doc/x", true},
		{"/usr/share/doc/**", "/usr/share/doc/x/y", true},
		{"/usr/share/doc/**", "/usr/share/doc", false},
		{"/usr/share/doc/**", "/usr/share/docs/x", false},
		{"/usr/lib/*-linux-gnu/gconv/**", "/usr/lib/x86_64-linux-gnu/gconv/a.so", true},
		{"/usr/lib/*-linux-gnu/gconv/**", "/usr/lib/x/y-linux-gnu/gconv/a.so", false},
		{"/usr/bin/ctr", "/usr/bin/ctr", true},
		{"/usr/bin/*", "/usr/bin/a/b", false},
		{"/var/run", "/var/run", true},
		{"/var/run", "/var/run/x", false},
	} {
		if got := MatchPath(c.glob, c.path); got != c.want {
			t.Errorf("%s matches %s: %t", c.glob, c.path, got)
		}
	}
}

type oneFile []byte

func (o oneFile) Open(name string) (fs.File, error) {
	return fstest.MapFS{"lab.yaml": {Data: o}, "files/x": {Data: []byte("x")}}.Open(name)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	f.Add([]byte(head + "extends: recipe.yaml\nfiles:\n  - {path: /x, source: files/x}\n"))
	f.Add([]byte(head + "kernel: {package: a1}\ncmdline: [a]\nusers: [{name: a, uid: 100}]\n"))
	for _, n := range []string{"recipe.yaml", "lab.yaml", "generic.yaml"} {
		b, err := fs.ReadFile(rootfs.FS, n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Load(Builtin{"hpc", oneFile(b), "lab.yaml"}, "")
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Reason == "" {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		for _, file := range r.Files {
			if !validPath(file.Path) {
				t.Fatalf("path %q was accepted", file.Path)
			}
		}
		for _, p := range append(r.Packages, r.Without...) {
			if strings.HasPrefix(p, "-") {
				t.Fatalf("package %q would be an option of apt", p)
			}
		}
	})
}

func TestRecipesOfThePiAreValid(t *testing.T) {
	for entry, c := range map[string]struct{ lab, uefi, board bool }{
		"qemu": {false, true, false}, "qemu-dev": {true, true, false}, "pi4": {false, false, true}, "pi5": {false, false, false},
	} {
		r, err := Load(Builtin{"pi", pirootfs.FS, entry + ".yaml"}, "")
		if err != nil {
			t.Fatalf("%s: %v", entry, err)
		}
		if r.LabChannel != c.lab || (r.Kernel.Stub != "") != c.uefi || (r.Boot.Firmware != "") != c.board {
			t.Errorf("%s: lab %t, stub %q, firmware %q", entry, r.LabChannel, r.Kernel.Stub, r.Boot.Firmware)
		}
		if c.uefi == (len(r.Kernel.DeviceTrees) > 0) || c.uefi == (r.Kernel.Overlay != nil) || c.uefi == (r.Boot.Config != nil) {
			t.Errorf("%s: device trees %q", entry, r.Kernel.DeviceTrees)
		}
		for _, w := range []string{"lockdown=integrity", "module.sig_enforce=1", "init_on_free=1", "panic=10", "net.ifnames=0"} {
			if !slices.Contains(r.Cmdline, w) {
				t.Errorf("%s: the command line lacks %s", entry, w)
			}
		}
		for _, w := range r.Cmdline {
			if strings.HasPrefix(w, "rdinit=") || strings.HasPrefix(w, "systemd.unit=") {
				t.Errorf("%s: %s on the command line", entry, w)
			}
		}
		for _, p := range []string{"openssh-server", "login", "python3", "bash"} {
			if slices.Contains(r.Packages, p) {
				t.Errorf("%s: has %s", entry, p)
			}
		}
	}
}

func TestBoardKeys(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"tpm.dts": "/dts-v1/;\n", "config.txt": "arm_64bit=1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := writeRecipe(t, dir, "mine.yaml", head+`extends: hpc
backports: [linux-image-arm64]
kernel:
  device_trees: [broadcom/bcm2711-rpi-4-b.dtb]
  overlay: tpm.dts
boot:
  firmware: raspi-firmware
  files: [start4.elf]
  config: config.txt
`)
	r, err := Load(Builtin{"hpc", builtin(""), "lab.yaml"}, file)
	if err != nil {
		t.Fatal(err)
	}
	if r.Backports[0] != "linux-image-arm64" || r.Kernel.DeviceTrees[0] != "broadcom/bcm2711-rpi-4-b.dtb" || string(r.Kernel.Overlay) != "/dts-v1/;\n" ||
		r.Boot.Firmware != "raspi-firmware" || r.Boot.Files[0] != "start4.elf" || string(r.Boot.Config) != "arm_64bit=1\n" {
		t.Errorf("%+v", r)
	}
	for text, reason := range map[string]Reason{
		"kernel: {device_trees: [../../etc/passwd]}\n": ReasonValue,
		"kernel: {device_trees: [bcm2711.dtb]}\n":      ReasonValue,
		"kernel: {overlay: /etc/passwd}\n":             ReasonValue,
		"kernel: {overlay: none.dts}\n":                ReasonFile,
		"boot: {files: [a/b]}\n":                       ReasonValue,
		"boot: {kernel: x}\n":                          ReasonUnknown,
	} {
		_, err := Load(Builtin{"hpc", builtin(""), "lab.yaml"}, writeRecipe(t, dir, "bad.yaml", head+"extends: hpc\n"+text))
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason {
			t.Errorf("%q: %v, want %s", text, err, reason)
		}
	}
}
