package pi

import (
	"bytes"
	"fmt"
	"os"

	"portcullis/images/card"
	"portcullis/images/debroot"
)

// ReasonFakeRoot: a release image would hold the root of trust that is only for tests.
const ReasonFakeRoot debroot.Reason = "fake-root"

// fakePackage begins the names of that root's functions, which Go keeps in every
// program that has them: the stack traces need them.
const fakePackage = "portcullis/hardware/fake."

// guardPrograms refuses programs that a release must not have. The finished tree
// is looked at too (debroot.Guard); this is about what is inside our programs,
// the initramfs's included.
func guardPrograms(profile string, programs []program) error {
	if profile != card.ProfileRelease {
		return nil
	}
	for _, p := range programs {
		data, err := os.ReadFile(p.path)
		if err != nil {
			return err
		}
		if bytes.Contains(data, []byte(fakePackage)) {
			return refuse(ReasonFakeRoot, "%s has the root of trust that is for tests (%s)", p.name, fakePackage)
		}
		if err := debroot.GuardLabProgram(p.name, data); err != nil {
			return fmt.Errorf("program %s: %w", p.name, err)
		}
	}
	return nil
}
