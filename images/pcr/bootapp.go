package pcr

import (
	"fmt"

	"portcullis/images/uki"
)

// callingApplication is what firmware measures before its first boot option (TCG PC
// Client Platform Firmware Profile, 8.2.4: EV_EFI_ACTION).
const callingApplication = "Calling EFI Application from Boot Option"

// PredictBootApplication computes register 4 after the boot of a UKI that is the
// firmware's first boot option: the call, the separator, the image and the kernel
// in it, which the stub has the firmware load. A firmware that tries another option
// first has another value.
//
// It is the register that the software which was loaded cannot fake: firmware has
// extended it with that software's own digest before it runs. Registers 9, 11 and
// 12 are empty then, and whoever runs instead of the image can fill them alike.
func PredictBootApplication(image []byte) (Value, error) {
	f, err := uki.Parse(image)
	if err != nil {
		return Value{}, err
	}
	kernel, ok := f.Section(uki.Linux)
	if !ok {
		return Value{}, fmt.Errorf("pcr: the image has no section %s", uki.Linux)
	}
	v := Value{}.Measure([]byte(callingApplication)).Measure(make([]byte, 4))
	for _, pe := range [][]byte{image, kernel} {
		digest, err := uki.Authenticode(pe)
		if err != nil {
			return Value{}, err
		}
		v = v.Extend(digest)
	}
	return v, nil
}
