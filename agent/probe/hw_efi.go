package probe

import (
	"fmt"
	"os"
	"path/filepath"

	"portcullis/attestserver/protocol"
)

// The variables that decide which programs the firmware starts (UEFI
// specification 2.10, 3.3 and 32.6), each with its vendor's GUID.
var efiVariables = []string{
	"SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c",
	"PK-8be4df61-93ca-11d2-aa0d-00e098032b8c", "KEK-8be4df61-93ca-11d2-aa0d-00e098032b8c",
	"db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", "dbx-d719b2cb-3d3a-4596-a3bc-dad00e67656f",
}

// efiGUID is the length of "-" and a GUID.
const efiGUID = 37

// efiSwitch is the length of a variable that is 0 or 1: its attributes come first.
const efiSwitch = 4 + 1

// efi are the firmware's switches and lists of keys. A machine without UEFI has
// none; neither has one whose kernel cannot read them yet.
func (h Host) efi() (out []protocol.Component) {
	if _, err := os.Stat(filepath.Join(h.Sys, "firmware/efi")); err != nil {
		return nil
	}
	for _, v := range efiVariables {
		b, err := h.Special("efivarfs", v)
		if err != nil || len(b) < efiSwitch {
			continue
		}
		value := digest(b)
		if len(b) == efiSwitch {
			value = fmt.Sprint(b[efiSwitch-1])
		}
		out = append(out, protocol.Component{Class: protocol.HwEFI, Slot: v[:len(v)-efiGUID], Value: value})
	}
	return out
}
