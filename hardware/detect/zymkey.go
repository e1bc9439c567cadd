package detect

import (
	"io/fs"
	"strings"

	"portcullis/hardware/zymbit"
)

// Zymbit is what points to a Zymkey or HSM. The module itself does not answer to a
// bus scan, so all of this is circumstantial until a secret was locked and unlocked.
type Zymbit struct {
	// Tools is true where the vendor's unlock tool is installed.
	Tools bool `json:"tools"`
	// Library is the path of the vendor's library, for zymbitd.
	Library string `json:"library,omitempty"`
	// Daemon is true where zymbitd's socket is.
	Daemon bool `json:"daemon"`
	// State is true where /var/lib/zymbit exists. A locked module whose state
	// directory is lost can never be used again.
	State bool `json:"state"`
	// Bus is true where /dev/i2c-1 exists.
	Bus bool `json:"bus"`
	// WakePin is the configured number of the wake line, 0 when none is.
	WakePin int `json:"wake_pin,omitempty"`
	// ComputedPin is what the kernel's list of lines says it should be.
	ComputedPin int      `json:"computed_pin,omitempty"`
	Problems    []string `json:"problems,omitempty"`
}

// usable says that something here can speak to a module; whether one answers is
// known after it was asked.
func (z Zymbit) usable() bool { return z.Tools || z.Daemon }

func zymkey(root fs.FS) Zymbit {
	var z Zymbit
	for _, p := range []string{"sbin/zkunlockifs", "usr/sbin/zkunlockifs", "usr/bin/zkunlockifs"} {
		z.Tools = z.Tools || exists(root, p)
	}
	for _, p := range []string{"usr/lib/libzk_app_utils.so", "usr/lib/*/libzk_app_utils.so"} {
		if names, err := fs.Glob(root, p); err == nil && len(names) > 0 && z.Library == "" {
			z.Library = "/" + names[0]
		}
	}
	z.Daemon = exists(root, strings.TrimPrefix(zymbit.Socket, "/"))
	z.State = exists(root, "var/lib/zymbit")
	z.Bus = exists(root, "dev/i2c-1")
	if !z.usable() && z.Library == "" && !z.State {
		return z
	}
	say := func(s string) { z.Problems = append(z.Problems, s) }
	if !z.Bus {
		say("there is no /dev/i2c-1: dtparam=i2c_arm=on and the module i2c-dev are needed")
	}
	if b, err := readCapped(root, "var/lib/zymbit/zkenv.conf", zymbit.MaxEnv); err == nil {
		env, err := zymbit.ParseEnv(string(b))
		if err != nil {
			say("zkenv.conf: " + err.Error())
		} else {
			z.WakePin = env.WakePin
		}
	}
	b, err := readCapped(root, "sys/kernel/debug/gpio", zymbit.MaxDebugGPIO)
	if err != nil {
		return z
	}
	z.ComputedPin, err = zymbit.WakePin(string(b))
	switch {
	case err != nil:
		say("wake pin: " + err.Error())
	case z.WakePin != z.ComputedPin:
		say("ZK_GPIO_WAKE_PIN is not the number this kernel gives GPIO4: the module would never bind")
	}
	return z
}
