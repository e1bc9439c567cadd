package setup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/zymbit"
)

// ZymbitPaths are the files that PrepareZymbit looks at and writes.
type ZymbitPaths struct {
	Env       string // zymbit.EnvFile
	DebugGPIO string // /sys/kernel/debug/gpio
}

// DefaultZymbitPaths are those of a Pi.
var DefaultZymbitPaths = ZymbitPaths{Env: zymbit.EnvFile, DebugGPIO: "/sys/kernel/debug/gpio"}

// PrepareZymbit puts the wake pin that this kernel uses into zkenv.conf and proves that the
// module locks and unlocks. It never makes the vendor's state directory: on a module
// that is locked already, a fresh one would end it for good. Nor does it go to
// production mode, which is a cut with pliers that nobody can take back.
func PrepareZymbit(ctx context.Context, p ZymbitPaths, c zymbit.ExecConfig, now time.Time, say func(string)) (*Zymbit, error) {
	if _, err := os.Stat(filepath.Dir(p.Env)); err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonAbsent, Err: fmt.Errorf("the vendor's state directory: %w; install the vendor's packages first", err)}
	}
	env, err := readEnv(p.Env)
	if err != nil {
		return nil, err
	}
	lines, err := readCapped(p.DebugGPIO, zymbit.MaxDebugGPIO)
	if err != nil {
		return nil, err
	}
	want, err := zymbit.WakePin(string(lines))
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("wake pin: %w", err)}
	}
	if env.WakePin != want {
		say(fmt.Sprintf("ZK_GPIO_WAKE_PIN: %d, was %d", want, env.WakePin))
		env.WakePin = want
		if err := replace(p.Env, []byte(env.String()), 0o644); err != nil {
			return nil, err
		}
	}
	c.Env = env
	z, err := zymbit.NewExec(c)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	say("locking and unlocking a secret")
	if err := roundTrip(ctx, z); err != nil {
		return nil, err
	}
	id, err := z.Identify(ctx)
	return &Zymbit{Done: now.UTC(), Identity: id, WakePin: want}, err
}

// roundTrip seals a throw-away secret and unseals it.
func roundTrip(ctx context.Context, r hardware.Root) error {
	secret := make([]byte, 32)
	defer clear(secret)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	blob, err := r.Seal(ctx, "portcullis-root-test", secret)
	if err != nil {
		return err
	}
	back, err := r.Unseal(ctx, "portcullis-root-test", blob)
	if err != nil {
		return err
	}
	defer clear(back)
	if !bytes.Equal(back, secret) {
		return &hardware.Error{Reason: hardware.ReasonFailed, Err: errors.New("another secret came back")}
	}
	return nil
}

// TestZymbit exercises a module without changing what it keeps.
func TestZymbit(ctx context.Context, r hardware.Root) []Check {
	var checks []Check
	for _, c := range []struct {
		name string
		f    func() error
	}{
		{"zymbit random", func() error { return testRandom(ctx, r) }},
		{"zymbit lock and unlock", func() error { return roundTrip(ctx, r) }},
	} {
		detail := ""
		err := c.f()
		if err != nil {
			detail = err.Error()
		}
		checks = append(checks, Check{c.name, err == nil, detail})
	}
	return checks
}

func readEnv(path string) (zymbit.Env, error) {
	b, err := readCapped(path, zymbit.MaxEnv)
	if errors.Is(err, fs.ErrNotExist) {
		return zymbit.Env{}, nil
	}
	if err != nil {
		return zymbit.Env{}, err
	}
	env, err := zymbit.ParseEnv(string(b))
	if err != nil {
		return env, fmt.Errorf("%s: %w", path, err)
	}
	return env, nil
}
