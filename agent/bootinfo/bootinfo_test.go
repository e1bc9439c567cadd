package bootinfo

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func good() Info {
	return Info{
		Session:        "abcdefghijklmnopqrstuvwx27",
		Gateway:        "10.77.0.1:7443",
		GatewayKey:     base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)),
		ManifestDigest: strings.Repeat("0a", 32),
		RootHash:       strings.Repeat("b0", 32),
		RootDevice:     "/dev/dm-0",
		LoopDevice:     "/dev/loop0",
	}
}

func TestNoteRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.json")
	if err := Write(path, good()); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	got, err := Read(path)
	if err != nil || got != good() || len(got.Key()) != 32 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := Write(path, good()); err == nil {
		t.Error("a note was overwritten")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("a note that others can read was taken")
	}
}

func TestNoteFieldsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Info){
		"zero value":              func(i *Info) { *i = Info{} },
		"short session":           func(i *Info) { i.Session = i.Session[1:] },
		"upper case session":      func(i *Info) { i.Session = strings.ToUpper(i.Session) },
		"session with a path":     func(i *Info) { i.Session = "../" + i.Session[3:] },
		"session with a line end": func(i *Info) { i.Session += "\n" },
		"gateway by name":         func(i *Info) { i.Gateway = "gateway:7443" },
		"gateway without port":    func(i *Info) { i.Gateway = "10.77.0.1" },
		"gateway at port 0":       func(i *Info) { i.Gateway = "10.77.0.1:0" },
		"gateway 0.0.0.0":         func(i *Info) { i.Gateway = "0.0.0.0:7443" },
		"gateway over IPv6":       func(i *Info) { i.Gateway = "[2001:db8::1]:7443" },
		"port with a zero":        func(i *Info) { i.Gateway = "10.77.0.1:07443" },
		"no key":                  func(i *Info) { i.GatewayKey = "" },
		"short key":               func(i *Info) { i.GatewayKey = base64.StdEncoding.EncodeToString(make([]byte, 31)) },
		"key without padding":     func(i *Info) { i.GatewayKey = strings.TrimRight(i.GatewayKey, "=") },
		"upper case digest":       func(i *Info) { i.ManifestDigest = strings.ToUpper(i.ManifestDigest) },
		"short root hash":         func(i *Info) { i.RootHash = i.RootHash[2:] },
		"another device":          func(i *Info) { i.RootDevice = "/dev/sda" },
		"climbing device":         func(i *Info) { i.LoopDevice = "/dev/loop0/../sda" },
	} {
		i := good()
		change(&i)
		if err := i.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if b, err := i.Encode(); err == nil {
			t.Errorf("%s: encoded as %s", name, b)
		}
	}
	if k := (Info{}).Key(); k != nil {
		t.Errorf("the zero value has the key %x", k)
	}
}

func TestNoteIsReadStrictly(t *testing.T) {
	b, err := good().Encode()
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for name, s := range map[string]string{
		"empty":           "",
		"no line end":     strings.TrimSuffix(text, "\n"),
		"two notes":       text + text,
		"white space":     " " + text,
		"unknown field":   strings.Replace(text, "{", `{"debug":true,`, 1),
		"doubled field":   strings.Replace(text, "{", `{"session":"abcdefghijklmnopqrstuvwx22",`, 1),
		"other spelling":  strings.Replace(text, `"session"`, `"Session"`, 1),
		"missing field":   strings.Replace(text, `,"loop_device":"/dev/loop0"`, "", 1),
		"null":            "null",
		"escaped letters": strings.Replace(text, "/dev/dm-0", `\u002fdev/dm-0`, 1),
		"over the cap":    text + strings.Repeat(" ", maxSize),
	} {
		if i, err := Parse([]byte(s)); err == nil {
			t.Errorf("%s: read as %+v", name, i)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := good().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"session":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := Parse(b)
		if err != nil {
			return
		}
		again, err := i.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is read and written as %q, %v", b, again, err)
		}
	})
}
