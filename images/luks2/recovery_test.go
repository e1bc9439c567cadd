package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestRecoveryKeyHasSystemdsForm(t *testing.T) {
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = byte(i*16 + i%16)
	}
	k := must[*RecoveryKey](t)(NewRecoveryKey(bytes.NewReader(raw)))
	const want = "ccbbddee-ffgghhii-jjkkllnn-rrttuuvv-ccbbddee-ffgghhii-jjkkllnn-rrttuuvv"
	if got := string(k.Passphrase()); got != want {
		t.Errorf("%s", got)
	}
	form := regexp.MustCompile(`^[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}$`)
	seen := make(map[string]bool)
	for range 100 {
		k := must[*RecoveryKey](t)(NewRecoveryKey(nil))
		if s := string(k.Passphrase()); !form.MatchString(s) || seen[s] || len(s) != RecoveryKeySize {
			t.Fatalf("%s", s)
		}
		seen[string(k.Passphrase())] = true
	}
	if _, err := NewRecoveryKey(bytes.NewReader(raw[:31])); err == nil {
		t.Error("made of 31 bytes")
	}
}

func TestRecoveryKeyAsPeopleTypeIt(t *testing.T) {
	k := must[*RecoveryKey](t)(NewRecoveryKey(nil))
	s := string(k.Passphrase())
	for name, typed := range map[string]string{
		"as shown":        s,
		"capitals":        strings.ToUpper(s),
		"no dashes":       strings.ReplaceAll(s, "-", ""),
		"spaces":          "  " + strings.ReplaceAll(s, "-", "  ") + "\r\n",
		"dashes anywhere": strings.Join(strings.Split(strings.ReplaceAll(s, "-", ""), ""), "-"),
		"two lines":       s[:36] + "\n" + s[36:],
	} {
		got, err := ParseRecoveryKey([]byte(typed))
		if err != nil || string(got.Passphrase()) != s {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, typed := range map[string]string{
		"empty":             "",
		"one letter short":  s[:len(s)-1],
		"one letter more":   s + "c",
		"letter not in it":  "a" + s[1:],
		"digit":             s[:40] + "0" + s[41:],
		"other dash":        strings.ReplaceAll(s, "-", "–"),
		"zero byte":         s[:70] + "\x00",
		"much too long":     strings.Repeat("-", 600),
		"kelvin for letter": strings.Replace(s, s[:1], "\u212a", 1),
	} {
		_, err := ParseRecoveryKey([]byte(typed))
		if ReasonOf(err) != ReasonRecoveryKey {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(typed) > 20 && strings.Contains(err.Error(), s[:8]) {
			t.Errorf("%s: the error repeats the key: %v", name, err)
		}
	}
	_, err := ParseRecoveryKey([]byte(s[:20] + "x" + s[21:]))
	if err == nil || !strings.Contains(err.Error(), "group 3, letter 3") {
		t.Errorf("where is it wrong: %v", err)
	}
}

func TestRecoveryKeyStaysOutOfLogs(t *testing.T) {
	k := must[*RecoveryKey](t)(NewRecoveryKey(nil))
	letters := strings.ReplaceAll(string(k.Passphrase()), "-", "")
	hex := fmt.Sprintf("%x", k.Passphrase())
	j := must[[]byte](t)(json.Marshal(map[string]any{"key": k, "value": *k}))
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %x %X %q %d %s", k, *k, k, *k, k, k, *k, k), string(j)} {
		if strings.Contains(s, letters[:8]) || strings.Contains(strings.ToLower(s), hex[:8]) || !strings.Contains(s, redacted) {
			t.Errorf("%s", s)
		}
	}
	k.Wipe()
	if len(bytes.Trim(k.Passphrase(), "\x00")) != 0 {
		t.Error("Wipe left something")
	}
}

func FuzzRecoveryKey(f *testing.F) {
	f.Add([]byte("cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv"))
	f.Add([]byte("CBDE FGHI"))
	f.Fuzz(func(t *testing.T, typed []byte) {
		k, err := ParseRecoveryKey(typed)
		if err != nil {
			return
		}
		again, err := ParseRecoveryKey(k.Passphrase())
		if err != nil || !bytes.Equal(again.Passphrase(), k.Passphrase()) || len(k.Passphrase()) != RecoveryKeySize {
			t.Errorf("%q: %v", typed, err)
		}
	})
}
