package escrow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
)

const volume = "0f2b9d3e-5a70-4c61-8f6e-2d1c9b7a6e54"

func newIdentity(t testing.TB) *Identity {
	t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{key}
}

func newRecord(t testing.TB) Record {
	t.Helper()
	key, err := luks2.NewRecoveryKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return Record{Volume: volume, Key: key}
}

func encrypt(t testing.TB, to *Recipient, rec Record) []byte {
	t.Helper()
	b, err := Encrypt(to, rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOnlyTheOperatorOpensIt(t *testing.T) {
	id, rec := newIdentity(t), newRecord(t)
	file := encrypt(t, id.Recipient(), rec)
	if len(file) > card.EscrowSize || !bytes.HasPrefix(file, []byte(armor.Header)) || bytes.Contains(file, rec.Key.Passphrase()) {
		t.Fatalf("%s", file)
	}
	padded := append(bytes.Clone(file), bytes.Repeat([]byte("\n"), card.EscrowSize-len(file))...)
	for name, b := range map[string][]byte{"as written": file, "as on the card": padded} {
		got, err := Decrypt(id, b)
		if err != nil || got.Volume != volume || !bytes.Equal(got.Key.Passphrase(), rec.Key.Passphrase()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if bytes.Equal(file, encrypt(t, id.Recipient(), rec)) {
		t.Error("two encryptions are the same")
	}
	if _, err := Decrypt(newIdentity(t), file); ReasonOf(err) != ReasonForeign {
		t.Errorf("somebody else: %v", err)
	}
}

func TestDamagedEscrowIsRefused(t *testing.T) {
	id := newIdentity(t)
	file := encrypt(t, id.Recipient(), newRecord(t))
	for i := len(armor.Header) + 1; i < len(file)-len(armor.Footer)-2; i++ {
		b := bytes.Clone(file)
		if b[i] == '\n' {
			continue
		}
		if b[i]++; !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", rune(b[i])) {
			b[i] = 'A'
		}
		if _, err := Decrypt(id, b); err == nil {
			t.Fatalf("byte %d changed, and it opens", i)
		}
	}
	for name, c := range map[string]struct {
		file []byte
		want Reason
	}{
		"empty":           {nil, ReasonNone},
		"only line feeds": {bytes.Repeat([]byte("\n"), card.EscrowSize), ReasonNone},
		"too large":       {append(bytes.Clone(file), bytes.Repeat([]byte("\n"), card.EscrowSize)...), ReasonFormat},
		"cut off":         {file[:len(file)/2], ReasonFormat},
		"not an escrow":   {[]byte("hello"), ReasonFormat},
		"something after": {append(bytes.Clone(file), "more"...), ReasonFormat},
	} {
		if _, err := Decrypt(id, c.file); ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What decrypts is still not believed: who knows the recipient can write anything.
func TestContentIsParsedStrictly(t *testing.T) {
	id := newIdentity(t)
	key := string(newRecord(t).Key.Passphrase())
	good := lineSchema + "\nvolume " + volume + "\nrecovery key " + key + "\n"
	seal := func(plain string) []byte {
		var b bytes.Buffer
		a := armor.NewWriter(&b)
		w, err := age.Encrypt(a, id.key.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(plain)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if _, err := Decrypt(id, seal(good)); err != nil {
		t.Fatal(err)
	}
	for name, plain := range map[string]string{
		"empty":           "",
		"other schema":    strings.Replace(good, "v1", "v2", 1),
		"no volume":       strings.Replace(good, volume, "", 1),
		"long volume":     strings.Replace(good, volume, volume+"0", 1),
		"two lines in it": strings.Replace(good, volume, volume[:17]+"\n"+volume[18:], 1),
		"no key":          strings.Replace(good, key, "", 1),
		"wrong key":       strings.Replace(good, key, strings.Repeat("x", len(key)), 1),
		"something after": good + "x",
		"very long":       good + strings.Repeat("x", 5000),
	} {
		if _, err := Decrypt(id, seal(plain)); ReasonOf(err) != ReasonFormat {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecipientIsParsedStrictly(t *testing.T) {
	id := newIdentity(t)
	good := id.Recipient().String()
	if r, err := ParseRecipient(good); err != nil || r.String() != good {
		t.Fatal(err)
	}
	wrong := []byte(good)
	if wrong[20]++; wrong[20] > 'z' {
		wrong[20] = 'q'
	}
	if _, err := age.ParseX25519Recipient(lowOrder); err != nil {
		t.Fatalf("age refuses it by itself: %v", err)
	}
	for name, c := range map[string]struct {
		s    string
		want Reason
	}{
		"empty":           {"", ReasonRecipient},
		"line feed":       {good + "\n", ReasonRecipient},
		"space":           {" " + good, ReasonRecipient},
		"capitals":        {strings.ToUpper(good), ReasonRecipient},
		"mixed":           {"A" + good[1:], ReasonRecipient},
		"typing error":    {string(wrong), ReasonRecipient},
		"two":             {good + "," + good, ReasonRecipient},
		"SSH key":         {"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", ReasonRecipient},
		"very long":       {"age1" + strings.Repeat("q", 1<<20), ReasonRecipient},
		"private key":     {id.key.String(), ReasonPrivateKey},
		"private, padded": {"\n" + strings.ToLower(id.key.String()), ReasonPrivateKey},
		// The point of order one: whatever the sender picks, the shared secret is zero.
		"everybody's point": {lowOrder, ReasonRecipient},
	} {
		_, err := ParseRecipient(c.s)
		if ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), id.key.String()[16:40]) {
			t.Errorf("%s: the error repeats the private key", name)
		}
	}
}

// lowOrder is 32 zero bytes as a recipient (BIP 173 encoding).
const lowOrder = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z"

func TestIdentityFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "operator.key")
	to, err := Generate(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	id, err := LoadIdentity(path)
	if err != nil || id.Recipient().String() != to.String() {
		t.Fatal(err)
	}
	if _, err := Generate(path); err == nil {
		t.Error("an identity was overwritten")
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The age programs read the same file.
	if ids, err := age.ParseIdentities(bytes.NewReader(whole)); err != nil || len(ids) != 1 {
		t.Error(err)
	}
	secret := id.key.String()
	for name, text := range map[string]string{
		"empty":      "",
		"comments":   "# nothing\n\n",
		"two":        secret + "\n" + secret + "\n",
		"recipient":  to.String(),
		"cut off":    secret[:40],
		"wrong line": secret + "\nhello " + secret,
		"too long":   strings.Repeat("#", 9000),
	} {
		_, err := ParseIdentity(strings.NewReader(text))
		if ReasonOf(err) != ReasonIdentity || strings.Contains(err.Error(), secret[16:40]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	j, err := json.Marshal([]any{id})
	if s := fmt.Sprintf("%v %+v %#v %x %s", id, *id, id, id, j); err != nil || strings.Contains(s, secret[16:40]) || strings.Contains(s, fmt.Sprintf("%x", secret[16:40])) {
		t.Error(s)
	}
}

func TestLoadFromFileCardAndPartition(t *testing.T) {
	id, rec := newIdentity(t), newRecord(t)
	file := encrypt(t, id.Recipient(), rec)
	padded := append(bytes.Clone(file), bytes.Repeat([]byte("\n"), card.EscrowSize-len(file))...)
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf.img")
	write(t, conf, func(f *os.File) error {
		if err := f.Truncate(card.ConfSize); err != nil {
			return err
		}
		return fat.Build(f, fat.Options{Size: card.ConfSize, Label: card.LabelConf}, map[string][]byte{card.EscrowFile: padded})
	})
	disk := filepath.Join(dir, "card.img")
	const sectors = (64 << 20) / gpt.SectorSize
	table := &gpt.Table{DiskID: gpt.GUID{1}, Sectors: sectors, Partitions: []gpt.Partition{{
		Number: card.PartConf, Name: card.LabelConf, Type: gpt.TypeBasicData, ID: gpt.GUID{2}, First: 2048, Last: 2048 + card.ConfSize/gpt.SectorSize - 1}}}
	write(t, disk, func(f *os.File) error {
		if err := f.Truncate(sectors * gpt.SectorSize); err != nil {
			return err
		}
		b, err := os.ReadFile(conf)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(b, table.Partitions[0].Offset()); err != nil {
			return err
		}
		return table.Write(f)
	})
	alone := filepath.Join(dir, "ESCROW.AGE")
	write(t, alone, func(f *os.File) error { _, err := f.Write(file); return err })
	for _, path := range []string{conf, disk, alone} {
		b, err := Load(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got, err := Decrypt(id, b); err != nil || !bytes.Equal(got.Key.Passphrase(), rec.Key.Passphrase()) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, content := range map[string][]byte{
		"text":         []byte("hello"),
		"large, zeros": make([]byte, 1<<20),
	} {
		path := filepath.Join(dir, name)
		write(t, path, func(f *os.File) error { _, err := f.Write(content); return err })
		if _, err := Load(path); ReasonOf(err) != ReasonFormat {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(filepath.Join(dir, "missing")); err == nil {
		t.Error("loaded a file that is not there")
	}
}

func write(t testing.TB, path string, content func(f *os.File) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := content(f); err != nil {
		t.Fatal(err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(lineSchema + "\nvolume " + volume + "\nrecovery key cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv\n"))
	f.Add([]byte(lineSchema + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := parseRecord(b)
		if err != nil {
			return
		}
		if len(rec.Volume) != uuidSize || len(rec.Key.Passphrase()) != luks2.RecoveryKeySize {
			t.Errorf("%q", b)
		}
	})
}

func FuzzDecrypt(f *testing.F) {
	id := newIdentity(f)
	f.Add(encrypt(f, id.Recipient(), newRecord(f)))
	f.Add([]byte(armor.Header + "\n\n" + armor.Footer))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Decrypt(id, b); err != nil && ReasonOf(err) == "" {
			t.Errorf("no reason: %v", err)
		}
	})
}

func FuzzRecipient(f *testing.F) {
	f.Add(newIdentity(f).Recipient().String())
	f.Add(lowOrder)
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRecipient(s); err == nil && r.String() != s {
			t.Errorf("%q became %s", s, r)
		}
	})
}
