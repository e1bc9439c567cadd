package setup

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware"
	"portcullis/hardware/detect"
)

// SoftHSMLabel is the label of the token and of the key in it.
const SoftHSMLabel = "portcullis"

// Files in the directory of PrepareSoftHSM.
const (
	softConf   = "softhsm2.conf"
	softTokens = "tokens"
	softPIN    = "pin"    // user PIN
	softSOPIN  = "so-pin" // security officer's
)

// PrepareSoftHSM makes a SoftHSM token in dir with random PINs and imports an ECDSA
// P-256 key into it: a PKCS#11 module to develop against. It is software on this
// disk and protects nothing; it is never a root of trust of the volume. When it is
// called again it checks what is there and makes what is missing.
func PrepareSoftHSM(ctx context.Context, dir string, now time.Time, say func(string)) (*SoftHSM, error) {
	module, err := softModule()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, softConf)
	r := &SoftHSM{Done: now.UTC(), Module: module, Conf: conf, Label: SoftHSMLabel}
	if err := os.MkdirAll(filepath.Join(dir, softTokens), 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", filepath.Join(dir, softTokens))
	if err := replace(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	so, err := pin(filepath.Join(dir, softSOPIN))
	if err != nil {
		return nil, err
	}
	defer clear(so)
	user, err := pin(filepath.Join(dir, softPIN))
	if err != nil {
		return nil, err
	}
	defer clear(user)
	there, err := softToken(ctx, conf)
	if err != nil {
		return nil, err
	}
	if !there {
		say("initialising the token " + SoftHSMLabel)
		err := softRun(ctx, conf, nil, []answer{
			{"enter SO PIN:", so}, {"enter SO PIN:", so}, {"enter user PIN:", user}, {"enter user PIN:", user},
		}, "--init-token", "--free", "--label", SoftHSMLabel)
		if err != nil {
			return nil, err
		}
	}
	public := filepath.Join(dir, "key.pub")
	der, err := os.ReadFile(public)
	if errors.Is(err, os.ErrNotExist) {
		say("importing a P-256 key")
		der, err = softImport(ctx, conf, user, public)
	}
	if err != nil {
		return nil, err
	}
	d := sha256.Sum256(der)
	r.Key = hex.EncodeToString(d[:])
	return r, nil
}

func softModule() (string, error) {
	for _, p := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so"} {
		if m, err := filepath.Glob(p); err == nil && len(m) > 0 {
			return m[0], nil
		}
	}
	return "", &hardware.Error{Reason: hardware.ReasonAbsent, Err: errors.New("SoftHSM is not installed (package softhsm2)")}
}

// pin reads the PIN at path, or makes one of 128 random bits: only a program types it.
func pin(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		if len(b) != 32 {
			clear(b)
			return nil, fmt.Errorf("%s has %d bytes instead of 32", path, len(b))
		}
		return b, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var raw [16]byte
	defer clear(raw[:])
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, err
	}
	b = hex.AppendEncode(nil, raw[:])
	return b, replace(path, b, 0o600)
}

func softToken(ctx context.Context, conf string) (bool, error) {
	c := exec.CommandContext(ctx, "softhsm2-util", "--show-slots")
	c.Env = softEnv(conf)
	out, err := c.Output()
	if err != nil {
		return false, fmt.Errorf("softhsm2-util (package softhsm2): %w", err)
	}
	for _, t := range detect.ParseSoftHSM(string(out[:min(len(out), detect.MaxOutput)])) {
		if t.Label == SoftHSMLabel && t.Initialised {
			return true, nil
		}
	}
	return false, nil
}

// softImport makes a key, lets softhsm2-util import it from memory, and then stores its
// public half: that is the sign that the import was done.
func softImport(ctx context.Context, conf string, user []byte, public string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	defer clear(text)
	fd, err := unix.MemfdCreate("key", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "key")
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	err = softRun(ctx, conf, f, []answer{{"enter user PIN:", user}, {"enter user PIN:", user}},
		"--import", "/proc/self/fd/3", "--token", SoftHSMLabel, "--label", SoftHSMLabel, "--id", "01", "--force")
	_, werr := f.WriteAt(make([]byte, len(text)), 0)
	if err = errors.Join(err, werr); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return der, replace(public, der, 0o644)
}

func softRun(ctx context.Context, conf string, extra *os.File, answers []answer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "softhsm2-util", args...)
	c.Env = softEnv(conf)
	if extra != nil {
		c.ExtraFiles = []*os.File{extra}
	}
	return converse(ctx, c, answers)
}

func softEnv(conf string) []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "SOFTHSM2_CONF=" + conf}
}

// TestSoftHSM checks the token of PrepareSoftHSM.
func TestSoftHSM(ctx context.Context, s *SoftHSM) []Check {
	there, err := softToken(ctx, s.Conf)
	switch {
	case err != nil:
		return []Check{{"softhsm token", false, err.Error()}}
	case !there:
		return []Check{{"softhsm token", false, "the token " + SoftHSMLabel + " is gone"}}
	}
	return []Check{{"softhsm token", true, "software on this disk: for development, protects nothing"}}
}
