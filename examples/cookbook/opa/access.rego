# access.rego: the owner of a document may do anything, others read what is public.
package access

import rego.v1

default allow := false

allow if input.user == owner

allow if {
	input.action == "read"
	data.public[input.document] == true
}

owner := data.owners[input.document]
