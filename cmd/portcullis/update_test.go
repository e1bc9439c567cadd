package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gateway "portcullis/attestserver/identity"
	"portcullis/images/fat"
	"portcullis/images/identity"
	"portcullis/images/importer"
	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/internal/config"
)

func run(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = cli.Run(t.Context(), &cli.Command{Sub: commands}, &cli.IO{In: strings.NewReader(""), Out: &o, Err: &e}, args)
	return code, o.String(), e.String()
}

// settings is a configuration whose state lies in a directory of the test.
func settings(t *testing.T) (file, dir string) {
	t.Helper()
	dir = t.TempDir()
	key := base64.StdEncoding.EncodeToString(manifesttest.Key("release key of the test").Public().(ed25519.PublicKey))
	file = filepath.Join(dir, "portcullis.yaml")
	text := "state_dir: " + dir + "\nattest:\n  key_file: " + filepath.Join(dir, "gateway.key") + "\nlink:\n  interface: eth1\n  address: 10.77.0.1/24\n" +
		"  pc_address: 10.77.0.2\n  pc_mac: 02:00:00:00:00:02\npxe:\n  image_dir: " + filepath.Join(dir, "hpc") + "\n  allow_lab_image: true\n  release_keys: [\"" + key + "\"]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(file); err != nil {
		t.Fatal(err)
	}
	return file, dir
}

func TestUpdateUsage(t *testing.T) {
	for _, args := range [][]string{{"update"}, {"update", "a", "b"}, {"update", "status", "x"}, {"update", "commit", "--stable", "-1s"}, {"import", "a", "b"}, {"identity", "x"}} {
		if code, out, errOut := run(t, args...); code != 2 {
			t.Errorf("%q: %d %s%s", args, code, out, errOut)
		}
	}
	for _, args := range [][]string{{"update", "--help"}, {"update", "status", "--help"}, {"update", "commit", "--help"}, {"update", "abort", "--help"}, {"import", "--help"}, {"identity", "--help"}} {
		if code, out, errOut := run(t, args...); code != 0 || !strings.Contains(out, "Example:") {
			t.Errorf("%q: %d %s%s", args, code, out, errOut)
		}
	}
}

// On a machine that no card has started there is nothing to update.
func TestUpdateElsewhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.pcupdate")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"update", file}, {"update", "status"}, {"update", "commit"}, {"update", "abort"}} {
		if code, _, errOut := run(t, args...); code != 1 || !strings.Contains(errOut, update.ReasonNotPi) {
			t.Errorf("%q: %d %s", args, code, errOut)
		}
	}
}

func TestIdentityPrintsTheGatewayKey(t *testing.T) {
	file, dir := settings(t)
	if code, out, _ := run(t, "identity", "--config", file); code != 0 || !strings.Contains(out, "none: attestd has not started") {
		t.Errorf("%d %s", code, out)
	}
	key, err := gateway.LoadOrCreate(filepath.Join(dir, "gateway.key"))
	if err != nil {
		t.Fatal(err)
	}
	public := base64.StdEncoding.EncodeToString(gateway.PublicKey(key))
	if code, out, _ := run(t, "identity", "--config", file); code != 0 || !strings.Contains(out, "gateway  "+public+"\n") {
		t.Errorf("%d %s", code, out)
	}
	code, out, _ := run(t, "identity", "--config", file, "--json")
	r, err := identity.Parse([]byte(out))
	if code != 0 || err != nil || base64.StdEncoding.EncodeToString(r.GatewayKey) != public {
		t.Errorf("%d %v %s", code, err, out)
	}
}

func TestImportSaysWhy(t *testing.T) {
	file, _ := settings(t)
	code, out, errOut := run(t, "import", "--config", file, "/dev/null")
	if code != 1 || !strings.Contains(errOut, importer.ReasonVolume) {
		t.Errorf("%d %s %s", code, out, errOut)
	}
}

func TestImportTakesAnImageAndSaysSo(t *testing.T) {
	file, dir := settings(t)
	im := manifesttest.New(t, nil)
	content := map[string][]byte{}
	for _, name := range []string{manifest.Envelope, manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root} {
		b, err := os.ReadFile(filepath.Join(im.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		content["hpc/"+name] = b
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		code  int
		want  string
	}{
		"an image": {content, 0, "portcullis: import image=hpc-test version=7 bytes="},
		"nothing":  {nil, 1, "portcullis: import failed reason=" + importer.ReasonEmpty},
	} {
		path := filepath.Join(t.TempDir(), "stick.img")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(fat.Build(f, fat.Options{Size: 64 << 20, Label: importer.Label}, c.files), f.Truncate(64<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		if code, out, errOut := run(t, "import", "--config", file, path); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: %d %s %s", name, code, out, errOut)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "hpc", manifest.Envelope)); err != nil {
		t.Error(err)
	}
}
