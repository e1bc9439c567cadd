package identity

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestInvariant09_KeyIsBornOnTheDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "gateway.key")
	first, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	again, err := LoadOrCreate(path)
	if err != nil || !first.Equal(again) {
		t.Fatalf("another key the second time (%v)", err)
	}
	other, err := LoadOrCreate(filepath.Join(t.TempDir(), "gateway.key"))
	if err != nil || first.Equal(other) {
		t.Fatalf("two devices have the same key (%v)", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := LoadOrCreate(good); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		mode os.FileMode
		want error
	}{
		"readable by others": {pem, 0o644, ErrMode},
		"empty":              {nil, 0o600, ErrFormat},
		"no PEM":             {[]byte("hello"), 0o600, ErrFormat},
		"cut":                {pem[:len(pem)-40], 0o600, ErrFormat},
		"more behind it":     {append(append([]byte(nil), pem...), pem...), 0o600, ErrFormat},
		"broken inside":      {[]byte("-----BEGIN " + pemType + "-----\nAAAA\n-----END " + pemType + "-----\n"), 0o600, ErrFormat},
	} {
		path := filepath.Join(dir, "bad")
		if err := os.WriteFile(path, c.data, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreate(path); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestTwoStartsAtOnceGetOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.key")
	keys := make([]string, 16)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			k, err := LoadOrCreate(path)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(k)
		})
	}
	group.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two keys")
		}
	}
}
