package zymbit

import (
	"strings"
	"testing"
	"testing/fstest"
)

// As /sys/kernel/debug/gpio prints it: Pi 4 before and after 6.6, Pi 5 of both steppings.
const (
	pi4Old = "gpiochip0: GPIOs 0-57, parent: platform/fe200000.gpio, pinctrl-bcm2711:\n gpio-4   (GPIO4               )\n"
	pi4New = `gpiochip0: GPIOs 512-569, parent: platform/fe200000.gpio, pinctrl-bcm2711:
 gpio-512 (ID_SDA              )
 gpio-516 (GPIO4               |sysfs               ) out hi

gpiochip1: GPIOs 570-577, parent: platform/soc:firmware:gpio, raspberrypi-exp-gpio, can sleep:
 gpio-570 (BT_ON               |shutdown            ) out hi
`
	pi5c1 = `gpiochip0: GPIOs 512-543, parent: platform/107d508500.gpio, gpio-brcmstb@107d508500:
gpiochip4: GPIOs 571-624, parent: platform/1f000d0000.gpio, pinctrl-rp1:
 gpio-575 (GPIO4               )
`
	pi5d0 = "gpiochip0: GPIOs 569-622, parent: platform/1f000d0000.gpio, pinctrl-rp1:\n"
)

func TestWakePinOfKnownBoards(t *testing.T) {
	for text, want := range map[string]int{pi4Old: 4, pi4New: 516, pi5c1: 575, pi5d0: 573} {
		if n, err := WakePin(text); err != nil || n != want {
			t.Errorf("%d, %v instead of %d in\n%s", n, err, want, text)
		}
	}
	for name, text := range map[string]string{
		"empty":               "",
		"no header chip":      "gpiochip0: GPIOs 512-543, parent: platform/x, gpio-brcmstb@107d508500:\n",
		"no numbers":          "gpiochip0: 58 GPIOs, parent: platform/fe200000.gpio, pinctrl-bcm2711:\n",
		"two header chips":    pi4New + pi5d0,
		"span backwards":      "gpiochip0: GPIOs 569-512, parent: platform/x, pinctrl-bcm2711:\n",
		"span too short":      "gpiochip0: GPIOs 5-7, parent: platform/x, pinctrl-bcm2711:\n",
		"name as part":        "gpiochip0: GPIOs 512-569, parent: platform/x, my-pinctrl-bcm2711x:\n",
		"number out of reach": "gpiochip0: GPIOs 512-99999, parent: platform/x, pinctrl-bcm2711:\n",
		"too large":           strings.Repeat("x", MaxDebugGPIO+1),
	} {
		if n, err := WakePin(text); err == nil {
			t.Errorf("%s: pin %d", name, n)
		}
	}
}

func TestEnvIsSourcedByAShellSoOnlyPlainValuesPass(t *testing.T) {
	e, err := ParseEnv("# vendor\nexport ZK_GPIO_WAKE_PIN=\"516\"\nZK_I2C_ADDR=0x30\n\n")
	if err != nil || e.WakePin != 516 || len(e.Other) != 1 || e.Other[0] != "ZK_I2C_ADDR=0x30" {
		t.Errorf("%+v, %v", e, err)
	}
	again, err := ParseEnv(e.String())
	if err != nil || again.String() != e.String() {
		t.Errorf("%+v, %v", again, err)
	}
	for _, s := range []string{"A=$(id)", "A=`id`", "A=b;id", "A=b c", "rm -rf x", "A=\"b", "1A=b", "=b", "A=b\x01", "ZK_GPIO_WAKE_PIN=x", "ZK_GPIO_WAKE_PIN=-1",
		"ZK_GPIO_WAKE_PIN=9999", "A=~/x", "A=*", strings.Repeat("#", MaxEnv+1)} {
		if e, err := ParseEnv(s); err == nil {
			t.Errorf("%q: %+v", s, e)
		}
	}
}

func FuzzEnv(f *testing.F) {
	f.Add("ZK_GPIO_WAKE_PIN=516\nA='b'\n")
	f.Add("export A=\"x\"\n# c")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEnv(s)
		if err != nil {
			return
		}
		again, err := ParseEnv(e.String())
		if err != nil || again.String() != e.String() {
			t.Errorf("%q became %q: %v", s, e.String(), err)
		}
	})
}

func FuzzDebugGPIO(f *testing.F) {
	for _, s := range []string{pi4Old, pi4New, pi5c1, pi5d0} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := WakePin(s); err == nil && (n < wakeLine || n > 4095) {
			t.Errorf("pin %d", n)
		}
	})
}

func TestWakePinFromSysfs(t *testing.T) {
	chip := func(m fstest.MapFS, n, label, base string) {
		m["class/gpio/gpiochip"+n+"/label"] = &fstest.MapFile{Data: []byte(label + "\n")}
		m["class/gpio/gpiochip"+n+"/base"] = &fstest.MapFile{Data: []byte(base + "\n")}
	}
	m := fstest.MapFS{}
	chip(m, "570", "raspberrypi-exp-gpio", "570")
	if _, err := SysfsWakePin(m); err == nil {
		t.Error("a pin out of an expander")
	}
	chip(m, "512", "pinctrl-bcm2711", "512")
	if n, err := SysfsWakePin(m); err != nil || n != 516 {
		t.Errorf("%d, %v", n, err)
	}
	chip(m, "600", "pinctrl-rp1", "600")
	if n, err := SysfsWakePin(m); err == nil {
		t.Errorf("two headers: %d", n)
	}
	for _, base := range []string{"", "-1", "9999", "x"} {
		m := fstest.MapFS{}
		chip(m, "1", "pinctrl-rp1", base)
		if n, err := SysfsWakePin(m); err == nil {
			t.Errorf("base %q: %d", base, n)
		}
	}
}
